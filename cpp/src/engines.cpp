#include "engine.hpp"
#include "failure.hpp"
#include "files.hpp"

// CMakeLists.txt sets these two for what it found.
#if !defined(WITH_MNN) && !defined(WITH_ONNXRUNTIME)
#error "no engine: build with CMakeLists.txt"
#endif

namespace {

struct Row {
    const char* suffix;
    std::unique_ptr<Engine> (*open)(const std::string& path, int threads);  // nullptr: the program was built without it
    const char* remedy;
};

const Row kEngines[] = {
#ifdef WITH_MNN
    {".mnn", open_mnn, ""},
#else
    {".mnn", nullptr, "MNN; build it with -DPython= or -DMNN_ROOT="},
#endif
#ifdef WITH_ONNXRUNTIME
    {".onnx", open_onnxruntime, ""},
#else
    {".onnx", nullptr, "onnxruntime; build it with -DONNXRUNTIME_ROOT=, or export an .mnn file"},
#endif
};

}  // namespace

std::unique_ptr<Engine> open_engine(const std::string& path, int threads) {
    const std::string suffix = suffix_of(path);
    std::string known;
    for (const Row& row : kEngines) {
        if (suffix == row.suffix && row.open != nullptr) return row.open(path, threads);
        if (suffix == row.suffix) throw Failure(path + ": this irtool-run was built without " + row.remedy);
        known += (known.empty() ? "" : " or ") + std::string(row.suffix);
    }
    read_file(path);  // what is wrong with it before its name is
    throw Failure(path + ": its name must end in " + known);
}
