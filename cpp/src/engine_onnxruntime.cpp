// .onnx files in onnxruntime, through the C++ interface that its releases and Debian's libonnxruntime-dev bring.
#define ORT_API_MANUAL_INIT  // not before main, where nobody could tell of a library that does not fit
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cctype>
#include <climits>
#include <cstdlib>
#include <regex>

#include "engine.hpp"
#include "failure.hpp"
#include "files.hpp"
#include "guard.hpp"

namespace {

constexpr size_t kLongest = 300;  // of onnxruntime's message: some name every operator of a model
constexpr int kTested = 28;       // of 1.28: the oldest that irtool's int8 files are made for

// onnxruntime's message in one line, without the places in its own source, and with a remedy if the library is an old one.
std::string reason(const Ort::Exception& error) {
    static const std::regex places("/\\S+\\.(cc|h):[0-9]+ ");
    std::string said = std::regex_replace(std::string(error.what()).substr(0, 2 * kLongest), places, "").substr(0, kLongest);
    while (!said.empty() && std::isspace(static_cast<unsigned char>(said.back()))) said.pop_back();
    const std::string version = OrtGetApiBase()->GetVersionString();
    const bool old = std::atoi(version.c_str()) == 1 && std::atoi(version.substr(version.find('.') + 1).c_str()) < kTested;
    return old ? said + "); this is onnxruntime " + version + ", and irtool's files are made for 1." + std::to_string(kTested) + " or newer" : said + ")";
}

int as_int(int64_t size) { return static_cast<int>(std::clamp<int64_t>(size, -1, INT_MAX)); }

// Readies the library, which must come before any of its objects. Throws Failure: it is older than the headers that the program
// was built with.
void start(const std::string& path) {
    Guard guard(path, "onnxruntime", true);
    if (OrtGetApiBase()->GetApi(ORT_API_VERSION) == nullptr) {
        throw Failure(std::string("onnxruntime ") + OrtGetApiBase()->GetVersionString() +
                      " is older than the one that irtool-run was built with: build it again, or bring 1." + std::to_string(ORT_API_VERSION) + " or newer");
    }
    Ort::InitApi();
}

class OnnxRuntime : public Engine {
public:
    OnnxRuntime(const std::string& path, int threads) : Engine(path) {
        read_file(path);  // Its complaints. The engine reads the file itself: weights may lie in another one beside it.
        Guard guard(path, "onnxruntime", true);
        try {
            load(threads);
        } catch (const Ort::Exception& error) {
            if (error.GetOrtErrorCode() == ORT_INVALID_PROTOBUF) throw Failure(path + ": is no ONNX model, or a damaged one");
            throw Failure(path + ": onnxruntime cannot run this model (" + reason(error));
        }
    }

    std::string property(const std::string& name) const override {
        Ort::AllocatorWithDefaultOptions allocator;
        const Ort::AllocatedStringPtr held = session_.GetModelMetadata().LookupCustomMetadataMapAllocated(name.c_str(), allocator);
        return held == nullptr ? std::string() : std::string(held.get());
    }

    void plan(int images, int channels, int height, int width) override {
        const std::vector<int> wanted = {images, channels, height, width};
        if (input_shape_[0] > 0 && input_shape_[0] != images) {
            const std::string held = std::to_string(input_shape_[0]);
            throw Failure(path_ + ": takes " + held + " images at a time, not " + std::to_string(images) + ": give --batch " + held +
                          (input_shape_[0] == 1 ? "" : ", and as many images or a multiple of it"));
        }
        planned_ = wanted;
    }

    const std::vector<float>& run(std::vector<float>& pixels) override {
        Guard guard(path_, "onnxruntime", false);
        try {
            const std::vector<int64_t> shape(planned_.begin(), planned_.end());
            const Ort::Value image = Ort::Value::CreateTensor<float>(memory_, pixels.data(), pixels.size(), shape.data(), shape.size());
            const char* const from = input_.c_str();
            const char* const to = output_name_.c_str();
            keep(session_.Run(Ort::RunOptions{nullptr}, &from, &image, 1, &to, 1).front());
        } catch (const Ort::Exception& error) {
            throw Failure(path_ + ": onnxruntime failed while it ran (" + reason(error));
        }
        return output_;
    }

private:
    void load(int threads) {
        memory_ = Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeCPU);
        env_ = Ort::Env(ORT_LOGGING_LEVEL_FATAL, "irtool-run");  // an exception says it; the log would say it again
        Ort::SessionOptions options;
        options.SetIntraOpNumThreads(threads);
        options.AddConfigEntry("session.load_model_format", "ONNX");  // and not what its first bytes may claim
        session_ = Ort::Session(env_, path_.c_str(), options);
        if (session_.GetInputCount() != 1) throw Failure(path_ + ": has " + std::to_string(session_.GetInputCount()) + " inputs, and one image is all it would get");
        if (session_.GetOutputCount() == 0) throw Failure(path_ + ": has no output");
        if (!is_float(session_.GetInputTypeInfo(0))) throw Failure(path_ + ": its input is no image of floats");
        if (!is_float(session_.GetOutputTypeInfo(0))) throw Failure(path_ + ": its first output is no tensor of floats");
        const Ort::TypeInfo type = session_.GetInputTypeInfo(0);
        for (int64_t size : type.GetTensorTypeAndShapeInfo().GetShape()) input_shape_.push_back(as_int(size));
        if (input_shape_.size() != 4) throw Failure(path_ + ": its input is no image of floats");
        Ort::AllocatorWithDefaultOptions allocator;
        input_ = session_.GetInputNameAllocated(0, allocator).get();
        output_name_ = session_.GetOutputNameAllocated(0, allocator).get();
    }

    static bool is_float(const Ort::TypeInfo& type) {
        return type.GetONNXType() == ONNX_TYPE_TENSOR && type.GetTensorTypeAndShapeInfo().GetElementType() == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    }

    void keep(const Ort::Value& value) {
        const size_t count = value.GetTensorTypeAndShapeInfo().GetElementCount();
        if (count == 0 || count % static_cast<size_t>(planned_[0]) != 0) {
            throw Failure(path_ + ": gives " + std::to_string(count) + " values for " + std::to_string(planned_[0]) + " images");
        }
        const float* values = value.GetTensorData<float>();
        output_.assign(values, values + count);
    }

    Ort::Env env_{nullptr};
    Ort::Session session_{nullptr};
    Ort::MemoryInfo memory_{nullptr};
    std::string input_, output_name_;
};

}  // namespace

std::unique_ptr<Engine> open_onnxruntime(const std::string& path, int threads) {
    start(path);
    return std::make_unique<OnnxRuntime>(path, threads);
}
