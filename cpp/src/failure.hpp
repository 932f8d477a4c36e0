// What a user did wrong, or a file is: one line, without a stop at the end.
#pragma once

#include <stdexcept>
#include <string>

struct Failure : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// A wrong command line: exit code 2 in place of 1.
struct UsageFailure : Failure {
    using Failure::Failure;
};
