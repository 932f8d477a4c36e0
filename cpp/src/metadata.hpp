// How pictures become a model's input: the JSON file beside the model, or what the model itself holds, as irtool writes them.
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

// What a model says of itself: `preprocessing` and `classes` (may be empty) are the JSON texts that stand for the two entries.
Metadata stored_metadata(const std::string& preprocessing, const std::string& classes, const std::string& model);

// model.mnn -> model.json, or report.json in the same folder if only that is there.
std::string metadata_path(const std::string& model);
