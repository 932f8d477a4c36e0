"""Malformed ONNX files, drawn from a seed, and a child process that reads them; used by the tests and by bench/onnx_fuzz.py."""

from __future__ import annotations

import multiprocessing
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import onnx
from onnx import helper
from onnx_nets import NETS

import irtool
from irtool.errors import IrtoolError

LIMIT = 600.0
"""Seconds of the clock, after which a case has no end. It takes a tenth of one; what is slow on a busy machine is no fault."""


def truncated(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def flipped(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 3, 30))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def rewired(data: bytes, rng: random.Random) -> bytes:
    """An input of one node becomes any other value: cycles, wrong ranks, weights in the place of data."""
    model = onnx.load_from_string(data)
    names = [name for node in model.graph.node for name in (*node.input, *node.output)]
    node = rng.choice([node for node in model.graph.node if node.input])
    node.input[rng.randrange(len(node.input))] = rng.choice(names)
    return model.SerializeToString()


def lost(data: bytes, rng: random.Random) -> bytes:
    """A weight, a node or an output goes."""
    model = onnx.load_from_string(data)
    part = rng.choice([model.graph.initializer, model.graph.node, model.graph.output, model.opset_import])
    del part[rng.randrange(len(part))]
    return model.SerializeToString()


def reshaped(data: bytes, rng: random.Random) -> bytes:
    """Absurd sizes in weights, inputs or integer constants."""
    model = onnx.load_from_string(data)
    absurd = rng.choice((-1, 0, 1, 7, 2**31, 2**40, 2**62))
    kind = rng.randrange(3)
    tensor = rng.choice(list(model.graph.initializer))
    if kind == 0 and tensor.dims:
        tensor.dims[rng.randrange(len(tensor.dims))] = absurd
    elif kind == 1:
        dims = model.graph.input[0].type.tensor_type.shape.dim
        dims[rng.randrange(len(dims))].dim_value = absurd
    else:
        whole = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT64 and t.raw_data]
        if whole:
            chosen = rng.choice(whole)
            chosen.raw_data = b"".join([absurd.to_bytes(8, "little", signed=True)] * (len(chosen.raw_data) // 8))
    return model.SerializeToString()


def attributed(data: bytes, rng: random.Random) -> bytes:
    """Wrong attributes: other names, other types, absurd numbers, an operator that does not exist."""
    model = onnx.load_from_string(data)
    node = rng.choice(list(model.graph.node))
    if node.attribute and rng.random() < 0.7:
        chosen = rng.choice(list(node.attribute))
        new = helper.make_attribute(chosen.name, rng.choice((-3, 2**31, [1, -1], [0] * 9, "SAME_UPPER", 1.5)))
        chosen.CopyFrom(new)
    else:
        node.op_type = rng.choice(("Conv", "Nothing", "Reshape", "LSTM", "Split", "Gemm", "If"))
    return model.SerializeToString()


def pointing(data: bytes, rng: random.Random) -> bytes:
    """External weights at places that nobody should read."""
    model = onnx.load_from_string(data)
    tensor = rng.choice(list(model.graph.initializer))
    where = rng.choice(("/etc/passwd", "../../etc/passwd", "..", ".", "m.onnx", "a\0b", "", "sub/../../x", "/dev/zero", "C:\\x"))
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (
        ("location", where),
        ("offset", rng.choice(("0", "-1", "x", str(2**40)))),
        ("length", rng.choice(("4", "-4", str(2**62)))),
    ):
        tensor.external_data.add(key=key, value=value)
    return model.SerializeToString()


MUTATIONS = (truncated, flipped, flipped, rewired, lost, reshaped, attributed, pointing)


def make(seed: int) -> tuple[str, bytes]:
    """The name of a case, and its bytes."""
    rng = random.Random(seed)
    name, mutation = rng.choice(sorted(NETS)), rng.choice(MUTATIONS)
    return f"{mutation.__name__} {name}", mutation(NETS[name]().SerializeToString(), rng)


OPENED: list[str] = []
"""What the process opened since it was last cleared."""
_OWN = (
    sys.prefix,
    sys.base_prefix,
    str(Path(irtool.__file__).resolve().parents[1]),
    "/etc/os-release",
    "/etc/machine-id",
    "/var/lib/dbus/machine-id",
    "/usr/lib",
    "/proc/",
    "/sys/",
)
"""What Python, its packages and irtool read for themselves."""


def attempt(path: str) -> str:
    """What became of one file."""
    OPENED.clear()
    outcome = _attempt(path)
    folder = Path(path).resolve().parent
    strange = [name for name in OPENED if not Path(name).resolve().is_relative_to(folder) and not name.startswith(_OWN)]
    return f"BUG: opened {strange[0]}" if strange else outcome


def _attempt(path: str) -> str:
    try:
        graph = irtool.load_onnx(path)
        smaller = irtool.prune(graph, irtool.plan(graph, "l1", 0.5), constants="drop")
        irtool.save_onnx(smaller, path + ".out.onnx")
    except IrtoolError as error:
        return f"error: {type(error).__name__}"
    except Exception as error:
        return f"BUG: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return "pruned"


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and isinstance(arguments[0], str):
        OPENED.append(arguments[0])


def serve(jobs: Any, results: Any) -> None:
    """A child: takes paths, gives back outcomes, until it dies of one."""
    with tempfile.TemporaryDirectory() as scratch:
        tempfile.tempdir = scratch  # the first run of a model has its files there; the cases lie in the usual place
        _serve(jobs, results, scratch)


def _serve(jobs: Any, results: Any, scratch: str) -> None:
    global _OWN
    _OWN = (*_OWN, scratch, os.devnull)
    sys.addaudithook(_watch)
    for path in iter(jobs.get, None):
        results.put(attempt(path))


class Child:
    """A process that is started anew when a case kills it or takes too long."""

    def __init__(self, method: str = "fork") -> None:
        context = multiprocessing.get_context(method)
        self.jobs, self.results = context.Queue(), context.Queue()
        self.process = context.Process(target=serve, args=(self.jobs, self.results), daemon=True)
        self.process.start()

    def run(self, path: str) -> str:
        self.jobs.put(path)
        end = time.monotonic() + LIMIT
        while time.monotonic() < end:
            try:
                return self.results.get(timeout=0.2)
            except Exception:  # the queue is empty still
                if not self.process.is_alive():
                    return f"BUG: the process died with {self.process.exitcode}"
        self.process.kill()
        return f"BUG: no answer in {LIMIT:.0f} s"
