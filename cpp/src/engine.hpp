// A model in an engine. Each engine has a source file of its own; engines.cpp says which one reads which file.
#pragma once

#include <memory>
#include <string>
#include <vector>

class Engine {
public:
    virtual ~Engine() = default;
    Engine(const Engine&) = delete;
    Engine& operator=(const Engine&) = delete;

    // The input's sizes as the file has them: images, channels, height, width. Not positive where the file leaves one free.
    const std::vector<int>& input_shape() const { return input_shape_; }

    // A text that the file holds under a name, beside the model; empty if it holds none.
    virtual std::string property(const std::string&) const { return {}; }

    // Plans for so many images of so many pixels; does nothing if that is the plan already. Throws Failure: the model cannot.
    virtual void plan(int images, int channels, int height, int width) = 0;

    // Runs `plan`ned sizes on float pixels, images x channels x height x width. The output's values, row by row.
    virtual const std::vector<float>& run(std::vector<float>& pixels) = 0;

    // Values of the output for each image, after a run.
    size_t width() const { return output_.size() / static_cast<size_t>(planned_[0]); }

protected:
    explicit Engine(std::string path) : path_(std::move(path)) {}

    std::string path_;
    std::vector<int> input_shape_, planned_;
    std::vector<float> output_;
};

// Loads a model into the engine that reads files of its suffix. Throws Failure: unreadable, of no engine, or one that this
// program was built without; damaged; not with one float image input.
std::unique_ptr<Engine> open_engine(const std::string& path, int threads);

// The engines' own, of those that the program was built with. `open_engine` calls them.
std::unique_ptr<Engine> open_mnn(const std::string& path, int threads);
std::unique_ptr<Engine> open_onnxruntime(const std::string& path, int threads);
