"""The first run of a model from a file, in a process of its own: what it does there, with the memory and the time it has, is bounded.

Started by its path this file is the other process. It imports nothing of irtool: torch would take longer to load than the run lasts.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

MEMORY = 4 << 30
"""Bytes that a run may take, beyond four times the model's own; where the system can hold a process to it (Linux)."""
SECONDS = 20
"""CPU time of a run: the same on a busy machine."""
_PATIENCE = 600
"""Seconds of the clock, for systems that do not bound CPU time."""
_WORDS = {"time": "does not end: it was stopped after {} s of CPU time", "memory": "takes more than {} GiB beyond four times its own size"}


def observed_types(
    model: Any, feed: Mapping[str, tuple[str, Sequence[int]]], names: Sequence[str], given: Mapping[str, Any] | None = None
) -> dict[str, tuple[int, tuple[int, ...]] | None]:
    """Run a model on ones in another process: the ONNX element type and the shape of each value asked for, None for a sequence.

    Args:
        model: a `ModelProto`; unchanged afterwards.
        feed: numpy's name of the element type, and the shape, of each input.
        names: values anywhere in the main graph.
        given: arrays for further inputs, where ones would not do.

    Raises:
        GraphError: onnxruntime is absent or refuses the model; or it takes too much memory, or does not end.
    """
    from irtool.errors import GraphError

    job = {"feed": {name: [kind, list(shape)] for name, (kind, shape) in feed.items()}, "names": list(names)}
    found = _told(model, job, given or {})
    if "types" in found:
        return {name: (typed[0], tuple(typed[1])) if typed else None for name, typed in found["types"].items()}
    raise GraphError(
        f"onnxruntime cannot run the model: {found.get('said', 'it ended the process')}", remedy="Run onnx.checker on the file."
    )


def refusal(model: Any) -> str:
    """Return onnxruntime's objection to a model, loaded in another process; nothing if it takes it.

    Raises:
        GraphError: onnxruntime is absent; or loading takes too much memory, or does not end.
    """
    found = _told(model, {"load": True}, {})
    return "" if found.get("loaded") else str(found.get("said", "it ended the process"))


def _told(model: Any, job: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the other process's report on a model. Raises GraphError where its limits ended it."""
    import numpy as np

    from irtool.atomic_files import scratch_folder
    from irtool.errors import GraphError
    from irtool.hosts.onnx.files.file import write_draft

    with scratch_folder() as folder:
        write_draft(model, folder / "model.onnx")
        for index, array in enumerate(given.values()):
            np.save(folder / f"given_{index}.npy", array, allow_pickle=False)
        size = sum(path.stat().st_size for path in folder.iterdir())
        limits = {"seconds": SECONDS, "memory": MEMORY + 4 * size}
        (folder / "job.json").write_text(json.dumps({**job, "given": list(given), **limits}), encoding="utf-8")
        found = _started(folder)
    if found.get("ended") in _WORDS:
        what = _WORDS[found["ended"]].format(SECONDS if found["ended"] == "time" else MEMORY >> 30)
        raise GraphError(f"the model {what}", remedy="Check the file, how often its loops run, or give smaller example sizes.")
    if found.get("ended") == "absent":
        raise GraphError("onnxruntime is not installed", remedy="pip install onnxruntime")
    return found


def _started(folder: Path) -> dict[str, Any]:
    """Return the other process's output, or how it ended."""
    command = [sys.executable, str(Path(__file__).resolve()), str(folder)]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        return {"ended": "time"}
    answer = folder / "answer.json"
    if answer.is_file():
        found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
        return found
    return {"ended": "time"} if done.returncode in (-24, -9) else {}  # SIGXCPU, and what follows it


def _limit(job: Mapping[str, Any]) -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    used = int(sum(resource.getrusage(resource.RUSAGE_SELF)[:2])) + 1
    held = next((int(line.split()[1]) << 10 for line in _lines("/proc/self/status") if line.startswith("VmSize:")), 0)
    for kind, most in ((resource.RLIMIT_CPU, used + job["seconds"]), (resource.RLIMIT_AS, held + job["memory"]), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(kind)[1]
        try:
            resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
        except (OSError, ValueError):  # macOS knows no limit of memory
            continue


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def _run(folder: Path, job: Mapping[str, Any]) -> dict[str, Any]:
    import numpy as np
    import onnx
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    _limit(job)
    try:
        if job.get("load"):
            ort.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
            return {"loaded": True}
        model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
        known = {value.name for value in model.graph.output}
        model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in job["names"] if name not in known)
        (folder / "observed.onnx").write_bytes(model.SerializeToString())
        session = ort.InferenceSession(str(folder / "observed.onnx"), options, providers=["CPUExecutionProvider"])
        feed = {name: np.ones(shape, kind) for name, (kind, shape) in job["feed"].items()}
        feed |= {name: np.load(folder / f"given_{index}.npy", allow_pickle=False) for index, name in enumerate(job["given"])}
        found = session.run(job["names"], feed)
    except Exception as error:  # onnxruntime's exceptions share no base class below Exception
        said = " ".join(str(error).split())
        full = isinstance(error, MemoryError) or "bad_alloc" in said or "Failed to allocate memory" in said
        return {"ended": "memory"} if full else {"said": said[:200]}
    number = onnx.helper.np_dtype_to_tensor_dtype
    types = [None if isinstance(array, list) else [int(number(np.asarray(array).dtype)), list(np.shape(array))] for array in found]
    return {"types": dict(zip(job["names"], types, strict=True))}


def _answer(folder: Path) -> None:
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    try:
        found = _run(folder, job)
    except ImportError:
        found = {"ended": "absent"}
    except MemoryError:
        found = {"ended": "memory"}
    (folder / "answer.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    # Started by path, Python looks for imports in this folder first, where a module could have an installed one's name.
    sys.path = [entry for entry in sys.path if not entry or Path(entry).resolve() != Path(__file__).resolve().parent]
    _answer(Path(sys.argv[1]))
