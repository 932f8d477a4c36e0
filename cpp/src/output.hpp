// Results on stdout.
#pragma once

#include <string>
#include <vector>

#include "options.hpp"

// One image's outputs, as the options ask for them.
void print_result(const std::string& image, const float* values, size_t count, const std::vector<std::string>& classes, const Options& options);

// Times of single runs, in milliseconds: on the wall's clock, and the processor's in all threads, which leaves out other programs.
void print_times(std::vector<double> wall, std::vector<double> processor, const Options& options);
