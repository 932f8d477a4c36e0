// Files as bytes, and the images that an argument names.
#pragma once

#include <string>
#include <vector>

// The whole file. Throws Failure: missing, a folder, no permission, empty, or larger than `limit` bytes.
std::vector<unsigned char> read_file(const std::string& path, size_t limit = size_t{1} << 31);

// What a name ends in, from its last dot on, in small letters; empty without one.
std::string suffix_of(const std::string& path);

// The images that an argument stands for: a .txt file lists one path a line (relative to the list), a folder holds them
// (sorted, not its subfolders), anything else is an image itself. Throws Failure: nothing there, or no images in it.
std::vector<std::string> images_of(const std::string& argument);
