#include "files.hpp"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>
#include <sstream>

#include "failure.hpp"

namespace fs = std::filesystem;

namespace {

const std::vector<std::string> kSuffixes = {".jpg", ".jpeg", ".png"};

bool is_image(const std::string& path) {
    return std::find(kSuffixes.begin(), kSuffixes.end(), suffix_of(path)) != kSuffixes.end();
}

std::vector<std::string> in_folder(const std::string& folder) {
    std::vector<std::string> found;
    std::error_code error;
    for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
        if (is_image(entry->path().string())) found.push_back(entry->path().string());
    }
    if (error) throw Failure(folder + ": cannot be read (" + error.message() + ")");
    if (found.empty()) throw Failure(folder + ": holds no .jpg, .jpeg or .png file");
    std::sort(found.begin(), found.end());
    return found;
}

std::vector<std::string> in_list(const std::string& list) {
    const std::vector<unsigned char> bytes = read_file(list, size_t{1} << 28);
    std::istringstream lines(std::string(bytes.begin(), bytes.end()));
    std::vector<std::string> found;
    for (std::string line; std::getline(lines, line);) {
        while (!line.empty() && std::isspace(static_cast<unsigned char>(line.back()))) line.pop_back();
        if (!line.empty()) found.push_back((fs::path(list).parent_path() / line).string());
    }
    if (found.empty()) throw Failure(list + ": names no image");
    return found;
}

}  // namespace

std::string suffix_of(const std::string& path) {
    std::string suffix = fs::path(path).extension().string();
    std::transform(suffix.begin(), suffix.end(), suffix.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    return suffix;
}

std::vector<unsigned char> read_file(const std::string& path, size_t limit) {
    std::error_code error;
    if (fs::is_directory(path, error)) throw Failure(path + ": is a folder");
    std::unique_ptr<FILE, int (*)(FILE*)> file(std::fopen(path.c_str(), "rb"), std::fclose);
    if (!file) throw Failure(path + ": cannot be read (" + std::strerror(errno) + ")");
    std::vector<unsigned char> bytes;
    unsigned char piece[1 << 16];
    while (const size_t count = std::fread(piece, 1, sizeof piece, file.get())) {
        if (bytes.size() + count > limit) throw Failure(path + ": is too large");
        bytes.insert(bytes.end(), piece, piece + count);
    }
    if (std::ferror(file.get())) throw Failure(path + ": cannot be read (" + std::strerror(errno) + ")");
    if (bytes.empty()) throw Failure(path + ": is empty");
    return bytes;
}

std::vector<std::string> images_of(const std::string& argument) {
    std::error_code error;
    if (fs::is_directory(argument, error)) return in_folder(argument);
    if (suffix_of(argument) == ".txt") return in_list(argument);
    return {argument};
}
