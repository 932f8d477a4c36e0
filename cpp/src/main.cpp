// irtool-run: classify images with a model in MNN or onnxruntime. Exit codes: 0 done, 1 a file is wrong, 2 the command line is.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <new>

#include "engine.hpp"
#include "failure.hpp"
#include "files.hpp"
#include "image.hpp"
#include "metadata.hpp"
#include "options.hpp"
#include "output.hpp"

namespace {

constexpr int kWarmup = 10;

// (pixel - 255 mean) * (1 / (255 std)) in single precision, channel by channel, as irtool normalises in training.
void normalise(const Image& image, const Metadata& metadata, float* to) {
    const size_t plane = static_cast<size_t>(image.height) * static_cast<size_t>(image.width);
    for (size_t channel = 0; channel < static_cast<size_t>(metadata.channels); ++channel) {
        const float mean = metadata.mean[channel] * 255.0f, scale = 1.0f / (metadata.std[channel] * 255.0f);
        const unsigned char* from = image.pixels.data() + channel;
        for (size_t pixel = 0; pixel < plane; ++pixel) {
            to[channel * plane + pixel] = (static_cast<float>(from[pixel * static_cast<size_t>(metadata.channels)]) - mean) * scale;
        }
    }
}

std::vector<float> load(const std::vector<std::string>& paths, size_t first, size_t count, const Metadata& metadata) {
    const size_t each = static_cast<size_t>(metadata.channels) * static_cast<size_t>(metadata.height) * static_cast<size_t>(metadata.width);
    std::vector<float> pixels(count * each);
    for (size_t at = 0; at < count; ++at) {
        const Image image = fitted(read_image(paths[first + at], metadata.channels), metadata.height, metadata.width);
        normalise(image, metadata, pixels.data() + at * each);
    }
    return pixels;
}

// --meta, else what the model's own file says, else the file beside it.
Metadata description(const Engine& engine, const Options& options) {
    if (!options.metadata.empty()) return read_metadata(options.metadata);
    const std::string held = engine.property("irtool.preprocessing");
    if (!held.empty()) return stored_metadata(held, engine.property("irtool.classes"), options.model);
    return read_metadata(metadata_path(options.model));
}

void check(const std::string& model, const std::vector<int>& shape, const Metadata& metadata) {
    const auto differs = [](int have, int want) { return have > 0 && have != want; };
    if (differs(shape[1], metadata.channels)) {
        throw Failure(model + ": takes " + std::to_string(shape[1]) + " channels, but its description says " + std::to_string(metadata.channels));
    }
    if (differs(shape[2], metadata.height) || differs(shape[3], metadata.width)) {
        throw Failure(model + ": takes " + std::to_string(shape[2]) + "x" + std::to_string(shape[3]) + " pixels, but its description says " +
                      std::to_string(metadata.height) + "x" + std::to_string(metadata.width));
    }
}

void classify(Engine& engine, const std::vector<std::string>& paths, const Metadata& metadata, const Options& options) {
    for (size_t first = 0; first < paths.size();) {
        const size_t count = std::min(paths.size() - first, static_cast<size_t>(options.batch));
        std::vector<float> pixels = load(paths, first, count, metadata);
        engine.plan(static_cast<int>(count), metadata.channels, metadata.height, metadata.width);
        const std::vector<float>& values = engine.run(pixels);
        for (size_t at = 0; at < count; ++at) {
            print_result(paths[first + at], values.data() + at * engine.width(), engine.width(), metadata.classes, options);
        }
        first += count;
    }
}

void bench(Engine& engine, const std::vector<std::string>& paths, const Metadata& metadata, const Options& options) {
    const size_t count = static_cast<size_t>(options.batch);
    std::vector<float> pixels = load(paths, 0, std::min(count, paths.size()), metadata);
    pixels.resize(count * static_cast<size_t>(metadata.channels) * static_cast<size_t>(metadata.height) * static_cast<size_t>(metadata.width));
    engine.plan(options.batch, metadata.channels, metadata.height, metadata.width);
    std::vector<double> wall, processor;
    for (int run = -kWarmup; run < options.bench; ++run) {
        const auto begin = std::chrono::steady_clock::now();
        const std::clock_t spent = std::clock();
        engine.run(pixels);
        const double computed = static_cast<double>(std::clock() - spent) * 1e3 / CLOCKS_PER_SEC;
        const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - begin;
        if (run < 0) continue;
        wall.push_back(took.count());
        processor.push_back(computed);
    }
    print_times(wall, processor, options);
}

int work(int count, char** arguments) {
    const Options options = parse_options(count, arguments);
    if (options.help) {
        std::fputs(kHelp, stdout);
        return 0;
    }
    std::vector<std::string> paths;
    for (const std::string& argument : options.images) {
        const std::vector<std::string> found = images_of(argument);
        paths.insert(paths.end(), found.begin(), found.end());
    }
    const std::unique_ptr<Engine> engine = open_engine(options.model, options.threads);
    const Metadata metadata = description(*engine, options);
    check(options.model, engine->input_shape(), metadata);
    (options.bench > 0 ? bench : classify)(*engine, paths, metadata, options);
    return std::fflush(stdout) == 0 ? 0 : 1;
}

int complain(const std::string& what, int code) {
    std::string line = what;
    for (char& c : line) {
        if (static_cast<unsigned char>(c) < 0x20) c = ' ';
    }
    std::fflush(stdout);
    std::fprintf(stderr, "%s\n", line.c_str());
    return code;
}

}  // namespace

int main(int count, char** arguments) {
    try {
        return work(count, arguments);
    } catch (const UsageFailure& failure) {
        return complain(failure.what(), 2);
    } catch (const Failure& failure) {
        return complain(failure.what(), 1);
    } catch (const std::bad_alloc&) {
        return complain("out of memory", 1);
    } catch (const std::exception& error) {
        return complain(std::string("internal error: ") + error.what(), 1);
    }
}
