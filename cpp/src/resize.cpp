#include <algorithm>
#include <cmath>
#include <vector>

#include "image.hpp"

namespace {

constexpr int kBits = 22;  // of the weights' fraction: 8 bits of pixel and 2 of head room leave so many of 32

// For one target pixel: the first source pixel, and a weight for each from there on.
struct Taps {
    int first = 0;
    std::vector<int> weights;
};

// A triangle as wide as the scale (but at least one pixel each way), around each target pixel's centre in [begin, end).
std::vector<Taps> taps(int source, double begin, double end, int target) {
    const double scale = (end - begin) / target, wide = std::max(scale, 1.0);
    std::vector<Taps> found(static_cast<size_t>(target));
    for (int at = 0; at < target; ++at) {
        const double center = begin + (at + 0.5) * scale;
        const int first = std::max(0, static_cast<int>(center - wide + 0.5));
        const int last = std::min(source, static_cast<int>(center + wide + 0.5));
        std::vector<double> weights;
        double sum = 0;
        for (int pixel = first; pixel < last; ++pixel) {
            const double distance = std::abs((pixel - center + 0.5) * (1.0 / wide));
            weights.push_back(distance < 1.0 ? 1.0 - distance : 0.0);
            sum += weights.back();
        }
        Taps& to = found[static_cast<size_t>(at)];
        to.first = first;
        for (double weight : weights) {
            const double share = sum != 0 ? weight * (1.0 / sum) : weight;
            to.weights.push_back(static_cast<int>(share * (1 << kBits) + (share < 0 ? -0.5 : 0.5)));
        }
    }
    return found;
}

unsigned char rounded(int sum) { return static_cast<unsigned char>(std::clamp(sum >> kBits, 0, 255)); }

Image across(const Image& image, const std::vector<Taps>& columns) {
    Image result{image.height, static_cast<int>(columns.size()), image.channels, {}};
    result.pixels.reserve(static_cast<size_t>(result.height) * columns.size() * static_cast<size_t>(image.channels));
    for (int y = 0; y < image.height; ++y) {
        const unsigned char* row = image.pixels.data() + static_cast<size_t>(y) * static_cast<size_t>(image.width * image.channels);
        for (const Taps& column : columns) {
            for (int channel = 0; channel < image.channels; ++channel) {
                int sum = 1 << (kBits - 1);
                for (size_t tap = 0; tap < column.weights.size(); ++tap) {
                    sum += row[(column.first + static_cast<int>(tap)) * image.channels + channel] * column.weights[tap];
                }
                result.pixels.push_back(rounded(sum));
            }
        }
    }
    return result;
}

Image down(const Image& image, const std::vector<Taps>& rows) {
    Image result{static_cast<int>(rows.size()), image.width, image.channels, {}};
    const size_t row = static_cast<size_t>(image.width) * static_cast<size_t>(image.channels);
    result.pixels.reserve(rows.size() * row);
    for (const Taps& line : rows) {
        for (size_t at = 0; at < row; ++at) {
            int sum = 1 << (kBits - 1);
            for (size_t tap = 0; tap < line.weights.size(); ++tap) {
                sum += image.pixels[(static_cast<size_t>(line.first) + tap) * row + at] * line.weights[tap];
            }
            result.pixels.push_back(rounded(sum));
        }
    }
    return result;
}

}  // namespace

Image fitted(const Image& image, int height, int width) {
    if (image.height == height && image.width == width) return image;
    const double have = static_cast<double>(image.width) / image.height, want = static_cast<double>(width) / height;
    double crop_width = image.width, crop_height = image.height;
    if (have > want) crop_width = want * image.height;
    if (have < want) crop_height = image.width / want;
    // Pillow's box holds single-precision numbers.
    const float left = static_cast<float>((image.width - crop_width) * 0.5), top = static_cast<float>((image.height - crop_height) * 0.5);
    const float right = static_cast<float>((image.width - crop_width) * 0.5 + crop_width);
    const float bottom = static_cast<float>((image.height - crop_height) * 0.5 + crop_height);
    const bool sideways = width != image.width || left != 0 || right != static_cast<float>(image.width);
    const bool upright = height != image.height || top != 0 || bottom != static_cast<float>(image.height);
    Image result = sideways ? across(image, taps(image.width, left, right, width)) : image;
    return upright ? down(result, taps(image.height, top, bottom, height)) : result;
}
