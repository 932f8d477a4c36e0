// .mnn files in MNN.
#include <MNN/Interpreter.hpp>

#include "engine.hpp"
#include "failure.hpp"
#include "files.hpp"
#include "guard.hpp"

namespace {

struct Destroy {
    void operator()(MNN::Tensor* tensor) const { MNN::Tensor::destroy(tensor); }
};
using Host = std::unique_ptr<MNN::Tensor, Destroy>;

Host over(const std::vector<int>& shape, std::vector<float>& values) {
    return Host(MNN::Tensor::create<float>(shape, values.data(), MNN::Tensor::CAFFE));
}

bool is_float(const MNN::Tensor* tensor) { return tensor->getType().code == halide_type_float && tensor->getType().bits == 32; }

size_t entries(const std::vector<int>& shape) {
    size_t total = 1;
    for (int size : shape) total *= size > 0 ? static_cast<size_t>(size) : 0;
    return total;
}

class Mnn : public Engine {
public:
    Mnn(const std::string& path, int threads) : Engine(path) {
        const std::vector<unsigned char> bytes = read_file(path);
        Guard guard(path, "MNN", true);
        net_.reset(MNN::Interpreter::createFromBuffer(bytes.data(), bytes.size()));
        if (net_ == nullptr) throw Failure(path + ": is no MNN model, or a damaged one");
        MNN::ScheduleConfig config;
        config.numThread = threads;
        session_ = net_->createSession(config);
        input_ = session_ == nullptr ? nullptr : net_->getSessionInput(session_, nullptr);
        if (input_ == nullptr) refuse(": MNN cannot run this model");
        input_shape_ = input_->shape();
        if (input_shape_.size() != 4 || !is_float(input_)) refuse(": its input is no image of floats");
    }

    void plan(int images, int channels, int height, int width) override {
        const std::vector<int> wanted = {images, channels, height, width};
        if (planned_ == wanted) return;
        Guard guard(path_, "MNN", true);
        net_->resizeTensor(input_, wanted);
        net_->resizeSession(session_);
        const MNN::Tensor* output = net_->getSessionOutput(session_, nullptr);
        if (output == nullptr || !is_float(output) || entries(output->shape()) == 0 || entries(output->shape()) % static_cast<size_t>(images) != 0) {
            throw Failure(path_ + ": MNN cannot run this model on " + std::to_string(images) + " images of " + std::to_string(height) + "x" + std::to_string(width));
        }
        output_.resize(entries(output->shape()));
        planned_ = wanted;
    }

    const std::vector<float>& run(std::vector<float>& pixels) override {
        Guard guard(path_, "MNN", false);
        input_->copyFromHostTensor(over(planned_, pixels).get());
        if (net_->runSession(session_) != MNN::NO_ERROR) throw Failure(path_ + ": MNN failed while it ran");
        const MNN::Tensor* output = net_->getSessionOutput(session_, nullptr);
        output->copyToHostTensor(over(output->shape(), output_).get());
        return output_;
    }

private:
    struct Close {
        void operator()(MNN::Interpreter* net) const { MNN::Interpreter::destroy(net); }
    };

    // Closes the net while the Guard still lives.
    [[noreturn]] void refuse(const char* why) {
        net_.reset();
        throw Failure(path_ + why);
    }

    std::unique_ptr<MNN::Interpreter, Close> net_;
    MNN::Session* session_ = nullptr;
    MNN::Tensor* input_ = nullptr;
};

}  // namespace

std::unique_ptr<Engine> open_mnn(const std::string& path, int threads) { return std::make_unique<Mnn>(path, threads); }
