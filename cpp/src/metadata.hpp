// How pictures become a model's input: the JSON file beside the .mnn, as irtool writes it.
#pragma once

#include <string>
#include <vector>

struct Metadata {
    std::vector<float> mean, std;  // one a channel, black 0 and white 1, in RGB order
    int height = 0, width = 0;
    int channels = 0;                  // 1 grey, 3 RGB
    std::vector<std::string> classes;  // may be empty
};

// Reads {"preprocessing": {"mean", "std", "size", "channels", "color_order"}, "classes"}.
// Throws Failure: not readable, not JSON, or a value that makes no sense.
Metadata read_metadata(const std::string& path);

// model.mnn -> model.json, or report.json in the same folder if only that is there.
std::string metadata_path(const std::string& model);
