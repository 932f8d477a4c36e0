#include "options.hpp"

#include <cerrno>
#include <cstdlib>
#include <functional>
#include <map>

#include "failure.hpp"

const char* const kHelp =
    "irtool-run MODEL IMAGE... [options]\n"
    "\n"
    "Classify images with a model that irtool exported: an .mnn file in MNN, an .onnx file in onnxruntime, as far as the program\n"
    "was built with them. IMAGE is a .jpg or .png file, a folder of them, or a .txt list of paths.\n"
    "How pictures become inputs is read from the .onnx file itself, the .json file beside the model, or the report.json of its folder.\n"
    "\n"
    "  --meta FILE    read it from FILE instead\n"
    "  --top N        show the N likeliest classes (default 5)\n"
    "  --json         one JSON object a line instead of text\n"
    "  --raw          the model's outputs as they are, a line an image\n"
    "  --batch N      images at a time (default 1)\n"
    "  --threads N    threads of the engine (default 1)\n"
    "  --bench N      time N runs after a warm-up, on the first batch; without an image, on grey ones\n"
    "  --help         this text\n"
    "\n"
    "Example: irtool-run small/model.mnn cat.jpg --top 3\n";

namespace {

int number(const std::string& option, const char* text, int most) {
    char* end = nullptr;
    errno = 0;
    const long value = std::strtol(text, &end, 10);
    if (end == text || *end != '\0' || errno != 0 || value < 1 || value > most) {
        throw UsageFailure(option + " " + text + ": give a whole number from 1 to " + std::to_string(most));
    }
    return static_cast<int>(value);
}

}  // namespace

Options parse_options(int count, char** arguments) {
    Options found;
    using Value = std::function<void(const char*)>;
    const std::map<std::string, Value> valued = {
        {"--meta", [&](const char* text) { found.metadata = text; }},
        {"--top", [&](const char* text) { found.top = number("--top", text, 1000000); }},
        {"--batch", [&](const char* text) { found.batch = number("--batch", text, 4096); }},
        {"--threads", [&](const char* text) { found.threads = number("--threads", text, 256); }},
        {"--bench", [&](const char* text) { found.bench = number("--bench", text, 10000000); }},
    };
    const std::map<std::string, bool*> flags = {{"--json", &found.json}, {"--raw", &found.raw}, {"--help", &found.help}, {"-h", &found.help}};
    std::vector<std::string> plain;
    bool only_plain = false;
    for (int at = 1; at < count; ++at) {
        const std::string word = arguments[at];
        const auto value = valued.find(word);
        const auto flag = flags.find(word);
        if (only_plain || word.empty() || word[0] != '-' || word == "-") {
            plain.push_back(word);
        } else if (word == "--") {
            only_plain = true;
        } else if (flag != flags.end()) {
            *flag->second = true;
        } else if (value == valued.end()) {
            throw UsageFailure("unknown option " + word + "; see --help");
        } else if (at + 1 >= count) {
            throw UsageFailure(word + " needs a value; see --help");
        } else {
            value->second(arguments[++at]);
        }
    }
    if (found.help) return found;
    if (plain.empty()) throw UsageFailure("no model is given; see --help");
    found.model = plain.front();
    found.images.assign(plain.begin() + 1, plain.end());
    if (found.images.empty() && found.bench == 0) throw UsageFailure("no image is given; see --help");
    return found;
}
