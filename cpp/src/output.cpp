#include "output.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>

#include "json.hpp"

namespace {

std::string name_of(size_t index, const std::vector<std::string>& classes) {
    return index < classes.size() ? classes[index] : std::to_string(index);
}

// Softmax in double, stable for large logits. A value that is not finite has no share.
std::vector<double> shares(const float* values, size_t count) {
    const double largest = *std::max_element(values, values + count);
    std::vector<double> found(values, values + count);
    for (double& value : found) value = std::exp(value - largest);
    const double sum = std::accumulate(found.begin(), found.end(), 0.0);
    for (double& value : found) value = std::isfinite(value / sum) ? value / sum : 0.0;
    return found;
}

// JSON has no infinities and no NaN.
std::string number(double value) {
    char text[40];
    std::snprintf(text, sizeof text, "%.9g", value);
    return std::isfinite(value) ? text : "null";
}

void print_raw(const std::string& image, const float* values, size_t count, bool json) {
    if (json) std::printf("{\"image\": %s, \"output\": [", quoted(image).c_str());
    for (size_t at = 0; at < count; ++at) {
        if (json) {
            std::printf("%s%s", at == 0 ? "" : ", ", number(values[at]).c_str());
        } else {
            std::printf("%s%.9g", at == 0 ? "" : " ", static_cast<double>(values[at]));
        }
    }
    std::printf(json ? "]}\n" : "\n");
}

}  // namespace

void print_result(const std::string& image, const float* values, size_t count, const std::vector<std::string>& classes, const Options& options) {
    if (options.raw) return print_raw(image, values, count, options.json);
    const std::vector<double> likely = shares(values, count);
    std::vector<size_t> order(count);
    std::iota(order.begin(), order.end(), size_t{0});
    const size_t shown = std::min(count, static_cast<size_t>(options.top));
    std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(shown), order.end(),
                      [&](size_t a, size_t b) { return likely[a] > likely[b] || (likely[a] == likely[b] && a < b); });
    if (options.json) {
        std::printf("{\"image\": %s, \"top\": [", quoted(image).c_str());
    } else {
        std::printf("%s:", image.c_str());
    }
    for (size_t rank = 0; rank < shown; ++rank) {
        const size_t index = order[rank];
        const std::string name = name_of(index, classes);
        if (options.json) {
            std::printf("%s{\"index\": %zu, \"class\": %s, \"share\": %.6f}", rank == 0 ? "" : ", ", index, quoted(name).c_str(), likely[index]);
        } else {
            std::printf("%s %s %.2f %%", rank == 0 ? "" : ",", name.c_str(), 100 * likely[index]);
        }
    }
    std::printf(options.json ? "]}\n" : "\n");
}

void print_times(std::vector<double> wall, std::vector<double> processor, const Options& options) {
    std::sort(wall.begin(), wall.end());
    std::sort(processor.begin(), processor.end());
    const auto at = [](const std::vector<double>& times, double share) {
        return times[std::min(times.size() - 1, static_cast<size_t>(share * static_cast<double>(times.size())))];
    };
    const char* form = options.json ? "{\"runs\": %zu, \"batch\": %d, \"threads\": %d, \"median_ms\": %.4f, \"p95_ms\": %.4f, \"least_ms\": %.4f, "
                                      "\"processor_ms\": %.4f}\n"
                                    : "%zu runs, batch %d, threads %d: median %.3f ms, 95 %% below %.3f ms, least %.3f ms, processor %.3f ms\n";
    std::printf(form, wall.size(), options.batch, options.threads, at(wall, 0.5), at(wall, 0.95), wall.front(), at(processor, 0.5));
}
