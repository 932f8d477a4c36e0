// A damaged model can make an engine crash or chatter. While a Guard lives, a crash ends the process with one line and exit code 1,
// and, if asked for, what is printed goes nowhere.
#pragma once

#include <string>

class Guard {
public:
    Guard(const std::string& path, const char* engine, bool silent);
    ~Guard();
    Guard(const Guard&) = delete;
    Guard& operator=(const Guard&) = delete;

private:
    int stdout_ = -1, stderr_ = -1;
};
