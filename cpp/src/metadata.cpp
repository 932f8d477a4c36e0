#include "metadata.hpp"

#include <cmath>
#include <filesystem>

#include "failure.hpp"
#include "files.hpp"
#include "json.hpp"

namespace {

constexpr int kLargest = 16384;  // pixels on one side

std::vector<float> numbers(const Json& value, const std::string& where, const char* name) {
    std::vector<float> found;
    for (const Json& item : value.items) {
        if (item.kind != Json::Kind::number) throw Failure(where + ": \"" + name + "\" holds something that is no number");
        found.push_back(static_cast<float>(item.number));
    }
    return found;
}

int whole(const Json& value, int low, int high, const std::string& what) {
    const double number = value.number;
    if (value.kind != Json::Kind::number || number != std::floor(number) || number < low || number > high) {
        throw Failure(what + " is not a whole number from " + std::to_string(low) + " to " + std::to_string(high));
    }
    return static_cast<int>(number);
}

Json parsed(const std::string& text, const std::string& where) {
    try {
        return parse_json(text);
    } catch (const Failure& failure) {
        throw Failure(where + ": " + failure.what());
    }
}

Metadata checked(const Json& held, const Json& classes, const std::string& path) {
    if (held.kind != Json::Kind::object) throw Failure(path + ": has no \"preprocessing\"; irtool writes it with the model");
    Metadata found;
    found.channels = whole(held["channels"], 1, 3, path + ": \"channels\"");
    if (found.channels == 2) throw Failure(path + ": \"channels\" must be 1 or 3");
    if (held["size"].items.size() != 2) throw Failure(path + ": \"size\" must be [height, width]");
    found.height = whole(held["size"].items[0], 1, kLargest, path + ": the height");
    found.width = whole(held["size"].items[1], 1, kLargest, path + ": the width");
    found.mean = numbers(held["mean"], path, "mean");
    found.std = numbers(held["std"], path, "std");
    const auto channels = static_cast<size_t>(found.channels);
    if (found.mean.size() != channels || found.std.size() != channels) throw Failure(path + ": give one mean and one std a channel");
    for (size_t channel = 0; channel < channels; ++channel) {
        const bool sound = std::isfinite(found.mean[channel]) && std::isfinite(found.std[channel]) && found.std[channel] > 0;
        if (!sound) throw Failure(path + ": means must be finite and stds positive");
    }
    const Json& order = held["color_order"];
    if (order.kind == Json::Kind::text && order.text != "RGB") throw Failure(path + ": color order " + order.text + "; only RGB is known");
    for (const Json& name : classes.items) found.classes.push_back(name.text);
    return found;
}

}  // namespace

std::string metadata_path(const std::string& model) {
    const std::filesystem::path own = std::filesystem::path(model).replace_extension(".json");
    const std::filesystem::path report = own.parent_path() / "report.json";
    std::error_code error;
    for (const std::filesystem::path& described : {own, report}) {
        if (std::filesystem::exists(described, error)) return described.string();
    }
    throw Failure(model + ": nothing says how pictures become its input: there is no " + own.filename().string() +
                  " and no report.json beside it. Give one with --meta");
}

Metadata read_metadata(const std::string& path) {
    const std::vector<unsigned char> bytes = read_file(path, size_t{1} << 26);
    const Json all = parsed(std::string(bytes.begin(), bytes.end()), path);
    return checked(all["preprocessing"], all["classes"], path);
}

Metadata stored_metadata(const std::string& preprocessing, const std::string& classes, const std::string& model) {
    const Json held = parsed(preprocessing, model + ": irtool.preprocessing in its metadata");
    return checked(held, classes.empty() ? Json() : parsed(classes, model + ": irtool.classes in its metadata"), model);
}
