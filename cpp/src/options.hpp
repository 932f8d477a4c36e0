// The command line.
#pragma once

#include <string>
#include <vector>

struct Options {
    std::string model, metadata;
    std::vector<std::string> images;  // files, folders and lists
    int batch = 1, threads = 1, top = 5, bench = 0;
    bool json = false, raw = false, help = false;
};

extern const char* const kHelp;

// Throws UsageFailure: an unknown option, a missing value, or one that makes no sense.
Options parse_options(int count, char** arguments);
