"""Calls of a function in a child process that is watched and limited: for files that may do harm when they are opened.

    with Watch() as watch:                        # one process that has imported what it needs
        report = watch.call(load_it, str(path), allowed=[str(path)])
    assert report.ended == "returned" and report.clean, report

Each call runs in a fork of the watch's process, so a case costs milliseconds and cannot change the next. In the fork an audit
hook (`sys.addaudithook`) notes every file that is opened, every import and every call of the operating system; the address
space and the time are limited. The function must be importable by name, its arguments and its result must be JSON data.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_HERE = Path(__file__).resolve().parent
_QUIET = frozenset({"os.putenv", "os.unsetenv"})
_SYSTEM = ("ctypes.", "ftplib.", "glob.", "http.", "marshal.", "os.", "pickle.", "pty.", "shutil.", "signal.", "smtplib.", "socket.", "sqlite3.", "subprocess.", "tempfile.", "urllib.", "webbrowser.")  # fmt: skip
"""Audit events that touch the world beyond this process, or run what they are given. `open` and `import` are kept apart."""


@dataclass(frozen=True)
class Report:
    """What one call did.

    Attributes:
        ended: `returned`, `raised`, `out of time`, `signal SIGSEGV`, or `exit code 3`.
        value: what the function returned.
        error: the name of the exception's class and its text: `FileError: ...`.
        modules: what `sys.modules` holds after the call and did not before, and every import that was tried besides.
        opened: files that were opened, or mapped into memory by foreign code, outside of those that were allowed.
        events: other audit events of the operating system, with their arguments.
        memory: the largest resident memory during the call above that at its start, in bytes; 0 where the system does not tell.
        seconds: CPU time.
        output: what the call wrote to stdout and stderr, at most the last 2,000 characters.
    """

    ended: str
    value: Any = None
    error: str = ""
    modules: tuple[str, ...] = ()
    opened: tuple[str, ...] = ()
    events: tuple[str, ...] = ()
    memory: int = 0
    seconds: float = 0.0
    output: str = ""

    @property
    def clean(self) -> bool:
        """Whether nothing was imported, nothing opened that was not allowed, and nothing asked of the operating system."""
        return not (self.modules or self.opened or self.events)


class Watch:
    """A process that waits for calls.

    Args:
        prepare: called there once, unwatched: imports and first uses, whose lazy imports are nobody's fault.
        arguments: its arguments, JSON data.
    """

    def __init__(self, prepare: Callable[..., Any] | None = None, *arguments: Any) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        folders = [entry for entry in sys.path if Path(entry).is_relative_to(_HERE)]  # of the test files that call
        environment["PYTHONPATH"] = os.pathsep.join([str(_HERE.parent), *folders, *filter(None, [environment.get("PYTHONPATH")])])
        environment["PYTHONWARNINGS"] = "ignore"  # a warning that is shown opens the file whose line it quotes
        command = [sys.executable, str(Path(__file__).resolve())]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        if prepare is not None:
            self._send({"prepare": _name(prepare), "arguments": arguments})

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def call(
        self, function: Callable[..., Any], *arguments: Any, allowed: Sequence[str] = (), memory: int = 2 << 30, seconds: float = 300.0
    ) -> Report:
        """Run `function(*arguments)` in a fork.

        Args:
            function: one that can be imported by name.
            arguments: JSON data.
            allowed: files and folders that it may open.
            memory: bytes of address space above those that the process has.
            seconds: of the clock, after which the fork is ended. Generous: a test must not depend on how fast the machine is.
        """
        job = {"function": _name(function), "arguments": arguments, "allowed": [*allowed], "memory": memory, "seconds": seconds}
        found = self._send(job)
        return Report(**{key: tuple(value) if key in ("modules", "opened", "events") else value for key, value in found.items()})

    def _send(self, job: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the watching process ended with {self._process.wait()}")
        found: dict[str, Any] = json.loads(line)
        if "failed" in found:
            raise RuntimeError(found["failed"])
        return found


def audited(function: Callable[..., Any], *arguments: Any, prepare: Callable[..., Any] | None = None, **limits: Any) -> Report:
    """One call in a watch of its own; see `Watch.call`."""
    with Watch(prepare) as watch:
        return watch.call(function, *arguments, **limits)


def _name(function: Callable[..., Any]) -> str:
    module = function.__module__
    if module == "__main__":
        module = Path(sys.modules["__main__"].__file__ or "").stem
    return f"{module}:{function.__qualname__}"


def _find(name: str) -> Callable[..., Any]:
    module, _, path = name.partition(":")
    found: Any = importlib.import_module(module)
    for part in path.split("."):
        found = getattr(found, part)
    assert callable(found)
    return found


# What follows runs in the child.


class _Hook:
    """The audit hook: it cannot be removed, so it can be switched off."""

    def __init__(self, allowed: Sequence[str]) -> None:
        self.allowed = tuple(os.path.realpath(path) for path in allowed)
        self.on = False
        self.opened: dict[str, None] = {}
        self.imports: dict[str, None] = {}
        self.events: dict[str, None] = {}

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        self.on = False  # what is done here is not watched
        try:
            if event == "open":
                self.note_file(arguments[0])
            elif event == "import":  # comes for statements only; `find_spec` sees `importlib`, too
                self.imports.setdefault(str(arguments[0]))
            elif event.startswith(_SYSTEM) and event not in _QUIET:
                self.events.setdefault(f"{event} {arguments!r}"[:300])
        finally:
            self.on = True

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """The place of a finder of modules, which finds none: every import that is no repetition passes here."""
        if self.on:
            self.imports.setdefault(name)

    def note_file(self, path: Any) -> None:
        if isinstance(path, int) or os.fsdecode(path).startswith("<"):  # an open descriptor; code without a file, in a traceback
            return
        place = os.path.realpath(os.fsdecode(path))
        if not any(place == allowed or place.startswith(allowed + os.sep) for allowed in self.allowed):
            self.opened.setdefault(place)


def _mapped() -> set[str]:
    """Files that are mapped into this process."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return set()
    return {line.split(None, 5)[5] for line in lines if "/" in line and not line.endswith("(deleted)")}


def _status(field: str) -> int:
    """A field of /proc/self/status in bytes."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), 0)


def _limit(memory: int) -> None:
    size = _status("VmSize")
    if size:
        resource.setrlimit(resource.RLIMIT_AS, (size + memory, resource.getrlimit(resource.RLIMIT_AS)[1]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here


def _watched(job: dict[str, Any]) -> dict[str, Any]:
    """One call under the hook, in the fork."""
    function = _find(job["function"])
    hook = _Hook(job["allowed"])
    files, modules, start = _mapped(), set(sys.modules), _status("VmRSS")
    _limit(job["memory"])
    sys.addaudithook(hook)
    sys.meta_path.insert(0, hook)  # type: ignore[arg-type]
    found: dict[str, Any] = {"ended": "returned"}
    began = time.process_time()
    hook.on = True
    try:
        found["value"] = function(*job["arguments"])
    except BaseException as error:  # a report, whatever it was
        hook.on = False
        found |= {"ended": "raised", "error": f"{type(error).__name__}: {error}"}
    hook.on = False
    found["seconds"] = time.process_time() - began
    found["memory"] = max(0, _status("VmHWM") - start)
    for path in sorted(_mapped() - files):
        hook.note_file(path)
    imported = dict.fromkeys(sorted(set(sys.modules) - modules))
    return found | {"modules": [*{**imported, **hook.imports}], "opened": [*hook.opened], "events": [*hook.events]}


def _child(job: dict[str, Any], pipe: int, log: int) -> None:
    """The fork: never returns."""
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    status = 70
    try:
        text = json.dumps(_watched(job), default=repr)
        resource.setrlimit(resource.RLIMIT_AS, (resource.getrlimit(resource.RLIMIT_AS)[1],) * 2)  # room for the report
        with open(pipe, "w") as stream:
            stream.write(text)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _forked(job: dict[str, Any]) -> dict[str, Any]:
    """Start a fork, wait for its report, end it when its time is over."""
    with tempfile.TemporaryFile() as log:
        reading, writing = os.pipe()
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            os.close(reading)
            _child(job, writing, log.fileno())
        os.close(writing)
        text, in_time = _read_all(reading, job["seconds"])
        if not in_time:
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        log.seek(max(0, log.seek(0, os.SEEK_END) - 2000))
        output = log.read().decode(errors="replace")
    if not in_time:
        return {"ended": "out of time", "output": output}
    if os.WIFSIGNALED(status):
        return {"ended": f"signal {signal.Signals(os.WTERMSIG(status)).name}", "output": output}
    if status or not text:
        return {"ended": f"exit code {os.waitstatus_to_exitcode(status)}", "output": output}
    found: dict[str, Any] = json.loads(text)
    return found | {"output": output}


def _read_all(pipe: int, seconds: float) -> tuple[bytes, bool]:
    """All that comes out of a pipe, and whether its end came in time."""
    until, parts = time.monotonic() + seconds, []
    try:
        while True:
            if not select.select([pipe], [], [], max(0.0, until - time.monotonic()))[0]:
                return b"".join(parts), False
            part = os.read(pipe, 1 << 16)
            if not part:
                return b"".join(parts), True
            parts.append(part)
    finally:
        os.close(pipe)


def _jobs() -> Iterator[dict[str, Any]]:
    for line in sys.stdin:
        yield json.loads(line)


def _serve() -> None:
    """Answer calls until stdin ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what is printed is no answer
    for job in _jobs():
        try:
            if "prepare" in job:
                _find(job["prepare"])(*job["arguments"])
                found: dict[str, Any] = {}
            else:
                _find(job["function"])  # imported here, once, rather than in each fork
                found = _forked(job)
        except Exception as error:
            found = {"failed": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(found) + "\n")
        answers.flush()


if __name__ == "__main__":
    _serve()
