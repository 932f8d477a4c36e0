// A model in MNN.
#pragma once

#include <memory>
#include <string>
#include <vector>

namespace MNN {
class Interpreter;
class Session;
class Tensor;
}  // namespace MNN

class Engine {
public:
    // Loads a model. Throws Failure: unreadable, not MNN, damaged, not with one float image input.
    Engine(const std::string& path, int threads);
    ~Engine();
    Engine(const Engine&) = delete;
    Engine& operator=(const Engine&) = delete;

    // The input's sizes as the file has them: images, channels, height, width.
    const std::vector<int>& input_shape() const { return input_shape_; }

    // Plans for so many images of so many pixels; does nothing if that is the plan already. Throws Failure: the model cannot.
    void plan(int images, int channels, int height, int width);

    // Runs `plan`ned sizes on float pixels, images x channels x height x width. The output's values, row by row.
    const std::vector<float>& run(std::vector<float>& pixels);

    // Values of the output for each image.
    size_t width() const { return output_.size() / static_cast<size_t>(planned_[0]); }

private:
    std::string path_;
    MNN::Interpreter* net_ = nullptr;
    MNN::Session* session_ = nullptr;
    MNN::Tensor* input_ = nullptr;
    std::vector<int> input_shape_, planned_;
    std::vector<float> output_;
};
