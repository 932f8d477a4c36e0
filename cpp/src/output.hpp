// Results on stdout.
#pragma once

#include <string>
#include <vector>

#include "options.hpp"

// One image's outputs, as the options ask for them.
void print_result(const std::string& image, const float* values, size_t count, const std::vector<std::string>& classes, const Options& options);

// Times of single runs, in milliseconds.
void print_times(std::vector<double> times, int images, const Options& options);
