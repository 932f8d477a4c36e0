#include "guard.hpp"

#include <csignal>
#include <cstdio>
#include <cstring>
#include <fcntl.h>
#include <unistd.h>

namespace {

constexpr int kSignals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT};
char line[1024];
int screen = STDERR_FILENO;
struct sigaction before[sizeof kSignals / sizeof *kSignals];

// Only what is safe in a signal handler: one write and out.
void crashed(int) {
    [[maybe_unused]] const ssize_t written = write(screen, line, strlen(line));
    _exit(1);
}

int away(int descriptor) {
    const int copy = dup(descriptor);
    const int nowhere = open("/dev/null", O_WRONLY);
    if (copy >= 0 && nowhere >= 0) dup2(nowhere, descriptor);
    if (nowhere >= 0) close(nowhere);
    return copy;
}

void back(int copy, int descriptor) {
    if (copy < 0) return;
    dup2(copy, descriptor);
    close(copy);
}

}  // namespace

Guard::Guard(const std::string& path, const char* engine, bool silent) {
    std::snprintf(line, sizeof line, "%.900s: %s crashed on this model; it is damaged: export it again\n", path.c_str(), engine);
    if (silent) {
        std::fflush(stdout);
        std::fflush(stderr);
        stdout_ = away(STDOUT_FILENO);
        stderr_ = away(STDERR_FILENO);
        if (stderr_ >= 0) screen = stderr_;
    }
    struct sigaction action = {};
    action.sa_handler = crashed;
    for (size_t which = 0; which < sizeof kSignals / sizeof *kSignals; ++which) sigaction(kSignals[which], &action, &before[which]);
}

Guard::~Guard() {
    for (size_t which = 0; which < sizeof kSignals / sizeof *kSignals; ++which) sigaction(kSignals[which], &before[which], nullptr);
    std::fflush(stdout);
    std::fflush(stderr);
    screen = STDERR_FILENO;
    back(stdout_, STDOUT_FILENO);
    back(stderr_, STDERR_FILENO);
}
