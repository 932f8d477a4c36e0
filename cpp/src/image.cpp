#include "image.hpp"

#include <csetjmp>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <jpeglib.h>

#include "failure.hpp"
#include "files.hpp"

namespace {

// A few megabytes of compressed data can inflate to gigabytes: what a picture's size does not need is refused.
struct Bound {
    size_t most = 0;
    bool passed = false;
} bound;

bool fits(size_t size) {
    bound.passed = bound.passed || size > bound.most;
    return size <= bound.most;
}

void* bounded_malloc(size_t size) { return fits(size) ? std::malloc(size) : nullptr; }

void* bounded_realloc(void* memory, size_t size) { return fits(size) ? std::realloc(memory, size) : nullptr; }

}  // namespace

#define STBI_MALLOC(size) bounded_malloc(size)
#define STBI_REALLOC(memory, size) bounded_realloc(memory, size)
#define STBI_FREE(memory) std::free(memory)
#define STB_IMAGE_IMPLEMENTATION
#define STB_IMAGE_STATIC
#define STBI_ONLY_PNG
#define STBI_NO_STDIO
#define STBI_MAX_DIMENSIONS 16384
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic ignored "-Wsign-compare"
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"
#include <stb/stb_image.h>
#pragma GCC diagnostic pop

namespace {

constexpr unsigned kLargest = 16384;           // pixels on one side
constexpr size_t kMostPixels = size_t{1} << 27;  // in all

struct JpegErrors {
    jpeg_error_mgr base;
    std::jmp_buf back;
    char text[JMSG_LENGTH_MAX];
    bool incomplete;
};

void on_error(j_common_ptr info) {
    auto* errors = reinterpret_cast<JpegErrors*>(info->err);
    info->err->format_message(info, errors->text);
    std::longjmp(errors->back, 1);
}

// Warnings: a picture with missing data is a damaged file, as Pillow has it; others are let pass.
void on_message(j_common_ptr info, int level) {
    auto* errors = reinterpret_cast<JpegErrors*>(info->err);
    if (level < 0) {
        info->err->format_message(info, errors->text);
        errors->incomplete = errors->incomplete || std::strstr(errors->text, "Premature end") != nullptr;
    }
}

// Plain data alone may live across longjmp, so the pixels belong to the caller.
bool decode_jpeg(const std::vector<unsigned char>& bytes, int channels, Image& image, std::string& problem) {
    jpeg_decompress_struct info;
    JpegErrors errors;
    std::memset(&errors, 0, sizeof errors);
    info.err = jpeg_std_error(&errors.base);
    errors.base.error_exit = on_error;
    errors.base.emit_message = on_message;
    if (setjmp(errors.back)) {
        jpeg_destroy_decompress(&info);
        problem = errors.text;
        return false;
    }
    jpeg_create_decompress(&info);
    jpeg_mem_src(&info, bytes.data(), static_cast<unsigned long>(bytes.size()));
    jpeg_read_header(&info, TRUE);
    if (info.image_width > kLargest || info.image_height > kLargest || size_t{info.image_width} * info.image_height > kMostPixels) {
        jpeg_destroy_decompress(&info);
        problem = "too many pixels";
        return false;
    }
    info.out_color_space = channels == 1 ? JCS_GRAYSCALE : JCS_RGB;
    jpeg_start_decompress(&info);
    image.height = static_cast<int>(info.output_height);
    image.width = static_cast<int>(info.output_width);
    image.channels = channels;
    const size_t row = size_t{info.output_width} * static_cast<size_t>(channels);
    image.pixels.resize(row * info.output_height);
    while (info.output_scanline < info.output_height) {
        JSAMPROW target = image.pixels.data() + row * info.output_scanline;
        jpeg_read_scanlines(&info, &target, 1);
    }
    jpeg_finish_decompress(&info);
    jpeg_destroy_decompress(&info);
    if (errors.incomplete) problem = "cut off";
    return !errors.incomplete;
}

size_t big_endian(const unsigned char* from) {
    return size_t{from[0]} << 24 | size_t{from[1]} << 16 | size_t{from[2]} << 8 | size_t{from[3]};
}

// As Pillow converts RGB to grey: ITU-R 601 in 16-bit fixed point.
unsigned char luma(const unsigned char* rgb) {
    return static_cast<unsigned char>((rgb[0] * 19595 + rgb[1] * 38470 + rgb[2] * 7471 + 0x8000) >> 16);
}

bool decode_png(const std::vector<unsigned char>& bytes, int channels, Image& image, std::string& problem) {
    int width = 0, height = 0, held = 0;
    const int size = static_cast<int>(bytes.size());
    bound = Bound{size_t{1} << 20, false};
    if (bytes.size() >= 24 && std::memcmp(&bytes[12], "IHDR", 4) == 0) {
        const size_t across = big_endian(&bytes[16]), down = big_endian(&bytes[20]);
        if (across > kLargest || down > kLargest || across * down > kMostPixels) {
            problem = "too many pixels";
            return false;
        }
    }
    const bool known = stbi_info_from_memory(bytes.data(), size, &width, &height, &held) != 0;
    const size_t area = static_cast<size_t>(width) * static_cast<size_t>(height);
    const int wanted = held <= 2 ? 1 : 3;
    // Four channels of 16 bits, a byte before each row; or the compressed data; and buffers grow by doubling.
    bound.most = 2 * (8 * area + 16 * static_cast<size_t>(height) + bytes.size() + 65536);
    unsigned char* pixels = known ? stbi_load_from_memory(bytes.data(), size, &width, &height, &held, wanted) : nullptr;
    if (pixels == nullptr) {
        problem = bound.passed ? "its data are more than its size has room for" : stbi_failure_reason();
        return false;
    }
    image.height = height;
    image.width = width;
    image.channels = channels;
    const size_t count = static_cast<size_t>(width) * static_cast<size_t>(height);
    image.pixels.resize(count * static_cast<size_t>(channels));
    for (size_t pixel = 0; pixel < count; ++pixel) {
        const unsigned char* from = pixels + pixel * static_cast<size_t>(wanted);
        unsigned char* to = image.pixels.data() + pixel * static_cast<size_t>(channels);
        if (channels == 1) {
            to[0] = wanted == 1 ? from[0] : luma(from);
        } else {
            for (int channel = 0; channel < 3; ++channel) to[channel] = from[wanted == 1 ? 0 : channel];
        }
    }
    stbi_image_free(pixels);
    return true;
}

}  // namespace

Image read_image(const std::string& path, int channels) {
    const std::vector<unsigned char> bytes = read_file(path, size_t{1} << 30);
    const bool jpeg = bytes.size() > 2 && bytes[0] == 0xFF && bytes[1] == 0xD8;
    const bool png = bytes.size() > 8 && std::memcmp(bytes.data(), "\x89PNG", 4) == 0;
    if (!jpeg && !png) throw Failure(path + ": is neither JPEG nor PNG");
    Image image;
    std::string problem;
    if (!(jpeg ? decode_jpeg : decode_png)(bytes, channels, image, problem)) {
        throw Failure(path + ": cannot be decoded (" + problem + ")");
    }
    return image;
}
