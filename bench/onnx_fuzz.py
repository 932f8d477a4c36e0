"""Malformed ONNX files: each must give a clear error or a right result, without a crash, a hang or a file read outside its folder.

    python bench/onnx_fuzz.py                  # 2,000 cases from a seed drawn now, which is printed
    python bench/onnx_fuzz.py 200 --seed 7

Each case runs in a child process with a time limit of 10 s. A "right result" is a graph that loads, prunes at 0.5 and is saved
past onnx.checker. Exits with 1 if any case crashed, hung or raised anything but an IrtoolError.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import secrets
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import onnx
from onnx import helper

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from onnx_nets import NETS  # noqa: E402

import irtool  # noqa: E402
from irtool.errors import IrtoolError  # noqa: E402

LIMIT = 10.0


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


def attempt(path: str) -> str:
    """What became of one file."""
    try:
        graph = irtool.load_onnx(path)
        smaller = irtool.prune(graph, irtool.plan(graph, "l1", 0.5), constants="drop")
        irtool.save_onnx(smaller, path + ".out.onnx")
    except IrtoolError as error:
        return f"error: {type(error).__name__}"
    except Exception as error:
        return f"BUG: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return "pruned"


def serve(jobs: multiprocessing.Queue, results: multiprocessing.Queue) -> None:
    """A child: takes paths, gives back outcomes, until it dies of one."""
    for path in iter(jobs.get, None):
        results.put(attempt(path))


class Child:
    """A process that is started anew when a case kills it or takes too long."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("fork")
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", nargs="?", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    first = secrets.randbelow(2**31) if options.seed is None else options.seed
    print(f"seed {first}, {options.count} cases", flush=True)
    found: Counter[str] = Counter()
    child = Child()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.onnx"
        for seed in range(first, first + options.count):
            name, data = make(seed)
            path.write_bytes(data)
            outcome = child.run(str(path))
            found[outcome if not outcome.startswith("BUG") else "BUG"] += 1
            if outcome.startswith("BUG"):
                print(f"{seed} {name}: {outcome}", flush=True)
                if "died" in outcome or "no answer" in outcome:
                    child = Child()
    print(*(f"{count:>6} {outcome}" for outcome, count in found.most_common()), sep="\n")
    return 1 if found["BUG"] else 0


if __name__ == "__main__":
    sys.exit(main())
