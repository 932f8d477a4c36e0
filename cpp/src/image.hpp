// Pictures as pixels.
#pragma once

#include <string>
#include <vector>

struct Image {
    int height = 0, width = 0, channels = 0;
    std::vector<unsigned char> pixels;  // height x width x channels
};

// Decode a JPEG or PNG file to 1 (grey) or 3 (RGB) channels. Throws Failure: unreadable, of another kind, damaged, too large.
Image read_image(const std::string& path, int channels);

// Scale to cover height x width and crop the centre: bilinear with antialiasing, columns first, with Pillow's integer
// arithmetic, so that Python gives the same pixels.
Image fitted(const Image& image, int height, int width);
