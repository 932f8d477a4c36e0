"""Mutations of real archives, at the level of their JSON and of their bytes, and what loading and running one may come to."""

from __future__ import annotations

import copy
import json
import linecache
import random
import sys
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from archive_nets import CASES, Functional, Nested, Tied
from audited import Report, Watch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

import irtool
from irtool.archive.allowed import functions, methods
from irtool.archive.operators import ATEN
from irtool.errors import IrtoolError

INTEGERS = (0, 1, -1, 2, 3, 7, 64, 1000, 2**15, 2**31 - 1, 2**31, -(2**31), 2**62, 2**63 - 1, -(2**63), 2**63, 10**12, 10**30)
FLOATS = (0.0, -1.0, 1e-30, 1e30, {"float": "inf"}, {"float": "nan"}, 0.5)
TEXTS = ("", "x", "evil", "os.system", "__class__", "torch", "same", "nearest", "none", "max", "cuda", "a" * 5000)
DANGEROUS = (
    "os.system", "builtins.eval", "builtins.pow", "builtins.range", "builtins.sum", "math.factorial", "math.comb", "operator.attrgetter", "operator.methodcaller",
    "torch.load", "torch.save", "torch.from_file", "torch.as_strided", "torch.empty_strided", "torch.resize_as_", "torch.set_default_device", "torch.Tensor.numpy",
    "torch.ops.aten._reshape_alias.default", "torch.ops.aten.as_strided.default", "torch.ops.aten.set_.source_Storage", "torch.ops.aten.resize_.default",
    "torch.ops.aten._sparse_coo_tensor_unsafe.default", "torch.ops.aten._unsafe_index.Tensor", "torch.ops.aten.from_file.default", "torch.ops.aten._print.default",
    "torch.ops.aten.save.default", "torch.ops.aten.native_batch_norm.default", "torch.ops.aten.mm.dtype", "torch.ops.aten.remainder.int", "torch.ops.image.read_file.default",
)  # fmt: skip
METHODS = tuple(name for name in dir(torch.Tensor) if callable(getattr(torch.Tensor, name, None)))
CLASSES = ("torch.nn.modules.conv.Conv2d", "torch.nn.modules.linear.Linear", "torch.nn.modules.activation.MultiheadAttention", "torch.nn.modules.rnn.LSTM",
           "torch.nn.modules.conv.LazyConv2d", "torch.nn.modules.container.Sequential", "torch.nn.modules.batchnorm.SyncBatchNorm", "subprocess.Popen", "torch.nn.modules.sparse.EmbeddingBag",
           "torch.nn.modules.normalization.GroupNorm", "torch.nn.modules.pooling.MaxPool2d", "torch.nn.modules.transformer.TransformerEncoderLayer")  # fmt: skip

Header = dict[str, Any]


class Mix(nn.Module):
    """Sizes read from the input, Python arithmetic, tuples and constants, as a transformer's blocks have them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.qkv = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 24)
        self.up, self.pool, self.norm = nn.Upsample(scale_factor=2.0), nn.MaxPool2d(2), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.up(self.conv(x)))
        batch, channels, height, width = x.shape
        tokens = self.norm(x.flatten(2).transpose(1, 2))
        q, k, v = self.qkv(tokens).reshape(batch, height * width, 3, 2, channels // 2).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-2, -1) * (channels // 2) ** -0.5 + torch.zeros(height * width)).softmax(-1)
        mixed = (weights @ v).transpose(1, 2).reshape(x.shape[0], height * width, channels)
        steps = torch.arange(height * width, dtype=x.dtype, device=x.device)
        return torch.cat([mixed + steps.unsqueeze(-1), tokens], dim=-1).sort(1).values[:, : height + 1]


@cache
def bases(folder: str) -> dict[str, tuple[Header, dict[str, Tensor]]]:
    """The archives that are mutated: their headers and tensors by name."""
    torch.manual_seed(0)
    graphs = {
        "functional": irtool.trace(Functional(), torch.zeros(2, 3, 17, 17)),
        "tied": irtool.trace(Tied(), torch.zeros(2, 3, 8, 8)),
        "nested": irtool.trace(Nested(), CASES["nested"].inputs()),
        "recurrent": irtool.trace(CASES["recurrent"].model(), CASES["recurrent"].inputs()),
        "mix": irtool.trace(Mix(), torch.zeros(1, 3, 16, 16)),
        "select": CASES["preresnet-select-absorb"].compress(),
    }
    found = {}
    for name, graph in graphs.items():
        path = Path(folder) / f"base_{name}.safetensors"
        irtool.save(graph, path)
        with safetensors.safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key).clone() for key in list(file.keys())}
            found[name] = json.loads(file.metadata()["irtool"]), tensors
    return found


def value(draw: random.Random) -> Any:
    """A value of any kind, as JSON."""
    kinds: list[Callable[[], Any]] = [
        lambda: draw.choice(INTEGERS),
        lambda: draw.choice(FLOATS),
        lambda: draw.choice(TEXTS),
        lambda: draw.choice([True, False, None]),
        lambda: [draw.choice(INTEGERS) for _ in range(draw.randint(0, 5))],
        lambda: {"tuple": [draw.choice(INTEGERS) for _ in range(draw.randint(0, 3))]},
        lambda: {"slice": [draw.choice(INTEGERS), None, draw.choice(INTEGERS)]},
        lambda: {"dtype": draw.choice(["float32", "int64", "bool", "qint8", "complex64", "float8_e4m3fn", "load"])},
        lambda: {"device": draw.choice(["cpu", "meta", "cuda:0", "privateuseone:0", "evil"])},
        lambda: {"function": draw.choice(DANGEROUS)},
        lambda: {draw.choice(["range", "set", "complex", "ordered", "layout", "memory_format", "tensor", "size"]): [0, 10**11, 1]},
        lambda: {"tensor": [[draw.choice(INTEGERS)], {"dtype": "float32"}]},
    ]
    return draw.choice(kinds)()


def calls(header: Header) -> list[dict[str, Any]]:
    return [node for node in header["program"]["nodes"] if node["op"].startswith("call")]


def places(root: Any, wanted: Callable[[Any], bool]) -> list[tuple[Any, Any]]:
    """Where values of a kind stand below a JSON value: (container, key)."""
    found, stack = [], [root]
    while stack:
        owner = stack.pop()
        for key, inner in owner.items() if isinstance(owner, dict) else enumerate(owner):
            if wanted(inner):
                found.append((owner, key))
            if isinstance(inner, dict | list):
                stack.append(inner)
    return found


def arguments(header: Header) -> list[Any]:
    return [part for node in calls(header) for part in (node.get("args", []), node.get("kwargs", {}))]


def target(header: Header, draw: random.Random) -> None:
    node = draw.choice([node for node in calls(header) if node["op"] == "call_function"] or calls(header))
    overloads = [
        f"torch.ops.aten.{name}.{kind}" for name in draw.sample(sorted(ATEN), 3) for kind in getattr(torch.ops.aten, name).overloads()
    ]
    node.update(op="call_function", target=draw.choice([draw.choice(DANGEROUS), draw.choice(sorted(functions())), draw.choice(overloads)]))


def method(header: Header, draw: random.Random) -> None:
    node = draw.choice(calls(header))
    node.update(op="call_method", target=draw.choice([draw.choice(METHODS), draw.choice(sorted(methods()))]))


def on_another_value(header: Header, draw: random.Random) -> None:
    node = draw.choice(calls(header))
    node["args"] = [value(draw), *node.get("args", [])[1:]]


def argument(header: Header, draw: random.Random) -> None:
    owner, key = draw.choice(places(arguments(header), lambda inner: not isinstance(inner, list) or not inner or isinstance(inner[0], int)))
    owner[key] = value(draw)


def extra_argument(header: Header, draw: random.Random) -> None:
    node = draw.choice(calls(header))
    if draw.random() < 0.5:
        node.setdefault("args", []).append(value(draw))
    else:
        node.setdefault("kwargs", {})[draw.choice(["dim", "out", "dtype", "device", "generator", "inplace", "function", "size"])] = value(
            draw
        )


def size(header: Header, draw: random.Random) -> None:
    found = places([arguments(header), header["modules"]], lambda inner: type(inner) is int)
    owner, key = draw.choice(found)
    owner[key] = draw.choice(INTEGERS)


def reference(header: Header, draw: random.Random) -> None:
    names = [node["name"] for node in header["program"]["nodes"]]
    found = places([node.get("args", []) for node in header["program"]["nodes"]], lambda inner: isinstance(inner, dict) and "node" in inner)
    owner, key = draw.choice(found)
    owner[key] = {"node": draw.choice([*names, "nothing"])}


def attribute(header: Header, draw: random.Random) -> None:
    entry = draw.choice([entry for entry in header["modules"].values() if entry.get("attributes")] or [{"attributes": {}}])
    key = draw.choice([*entry["attributes"], "forward", "_forward_hooks", "__class__", "evil"])
    entry["attributes"][key] = value(draw)


def module_class(header: Header, draw: random.Random) -> None:
    entry = draw.choice([entry for entry in header["modules"].values() if "class" in entry])
    entry["class"] = draw.choice(CLASSES)


def tensor_entry(header: Header, draw: random.Random) -> None:
    entry = draw.choice(list(header["tensors"].values()))
    edits: list[dict[str, Any]] = [
        {"data": draw.choice([*header["tensors"], "nothing"])},
        {"kind": draw.choice(["buffer", "attribute", "transient", "evil"])},
        {"order": [draw.randint(-2, 4) for _ in range(draw.randint(0, 4))]},
        {"requires_grad": value(draw)},
    ]
    entry.update(draw.choice(edits))


def names(header: Header, draw: random.Random) -> None:
    node = draw.choice(header["program"]["nodes"])
    text = draw.choice(["torch", "self", "lambda", "x=evil()", "getattr", "__builtins__", "a" * 5000, "weight"])
    node.update({draw.choice(["name", "target", "at"]): text})


def inputs(header: Header, draw: random.Random) -> None:
    owner, key = draw.choice(places(header["inputs"], lambda _: True))
    owner[key] = value(draw)


def without(header: Header, draw: random.Random) -> None:
    part: Any = draw.choice([header["program"]["nodes"], header["modules"], header["tensors"], header, draw.choice(calls(header))])
    if isinstance(part, list):
        part.pop(draw.randrange(len(part)))
    else:
        part.pop(draw.choice(list(part)))


def twice(header: Header, draw: random.Random) -> None:
    nodes = header["program"]["nodes"]
    index = draw.randrange(len(nodes))
    copied = copy.deepcopy(nodes[index])
    copied["name"] = draw.choice([copied["name"], copied["name"] + "_again"])
    nodes.insert(draw.randrange(len(nodes)), copied)


def growth(header: Header, draw: random.Random) -> None:
    """A value put together with itself, again and again."""
    nodes = header["program"]["nodes"]
    index = draw.randrange(1, len(nodes))
    first, name = nodes[index - 1]["name"], draw.choice(["operator.add", "operator.mul", "torch.cat", "operator.matmul", "operator.pow"])
    for count in range(draw.choice([3, 40])):
        pair = [{"node": first}, {"node": first}]
        first = f"grown_{count}"
        nodes.insert(index + count, {"name": first, "op": "call_function", "target": name, "args": [pair] if name == "torch.cat" else pair})


def nesting(header: Header, draw: random.Random) -> None:
    header["program"]["nesting"] = draw.choice([value(draw), {"arguments": ["x"], "inputs": value(draw), "outputs": value(draw)}])


MUTATIONS: dict[str, Callable[[Header, random.Random], None]] = {
    "target": target, "method": method, "called on another value": on_another_value, "argument": argument, "extra argument": extra_argument, "size": size, "reference": reference,
    "attribute": attribute, "class": module_class, "tensor": tensor_entry, "name": names, "inputs": inputs, "left out": without, "twice": twice, "growth": growth, "nesting": nesting,
}  # fmt: skip


def _bytes(content: bytes, draw: random.Random) -> bytes:
    """Bytes that are changed, cut off, put in, or a length that lies."""
    data = bytearray(content)
    kind = draw.randrange(4)
    if kind == 0:
        for _ in range(draw.randint(1, 8)):
            data[draw.randrange(min(len(data), draw.choice([16, 4000, len(data)])))] = draw.randrange(256)
    elif kind == 1:
        del data[draw.randrange(len(data)) :]
    elif kind == 2:
        place = draw.randrange(len(data))
        data[place:place] = draw.randbytes(draw.randint(1, 40))
    else:
        data[:8] = draw.choice([0, 1, 2**31, 2**63, len(data), len(data) * 2]).to_bytes(8, "little")
    return bytes(data)


def make(seed: int, folder: str) -> tuple[str, bytes]:
    """One case: the kinds of its mutations, and the file."""
    draw = random.Random(seed)
    header, tensors = bases(folder)[draw.choice(sorted(bases(folder)))]
    header = copy.deepcopy(header)
    kinds = draw.choices([*MUTATIONS, "bytes"], k=1 if draw.random() < 0.7 else draw.randint(2, 3))
    for kind in kinds:
        try:
            MUTATIONS.get(kind, lambda *_: None)(header, draw)
        except (LookupError, TypeError, AttributeError, ValueError):
            pass  # an earlier mutation left nothing to change
    if draw.random() < 0.1:
        key = draw.choice(sorted(tensors))
        shape = [draw.randint(0, 9) for _ in tensors[key].shape]
        tensors = {**tensors, key: torch.zeros(shape, dtype=tensors[key].dtype)}
    content = safetensors.torch.save(tensors, metadata={"irtool": json.dumps(header)})
    return "+".join(kinds), _bytes(content, draw) if "bytes" in kinds else content


def outcome(path: str) -> str:
    """Load a file twice, and run the one by its code and the other node by node. In the watched process."""
    warnings.simplefilter("ignore")
    try:
        graph, other = irtool.load(path), irtool.load(path)
    except IrtoolError as error:
        text = str(error)
        if "\n" in text or "allocate memory" in text or "MemoryError" in text:
            return f"BUG an unclear error: {text[:300]}"
        return "refused" if ": refused: " in text else "damaged" if "damaged" in text else "another error"
    results = []
    for run in (lambda: graph.run(*graph.example_inputs), lambda: _interpreted(other)):
        torch.manual_seed(0)
        try:
            results.append(run())
        except Exception as error:
            results.append(f"{type(error).__name__}: {str(error)[:200]}")
    if any(isinstance(result, str) for result in results):
        return (
            "loads, and says why it does not run"
            if all(isinstance(result, str) for result in results)
            else f"BUG one way runs alone: {results}"[:400]
        )
    return "computes what it says" if _same(*results) else "BUG its code computes something else than its nodes"


def _interpreted(graph: irtool.FxGraph) -> Any:
    for module in graph.module.modules():
        module.training = False
    with torch.no_grad():
        return fx.Interpreter(graph.module).run(*graph.example_inputs)


def _same(a: Any, b: Any) -> bool:
    ours, theirs = pytree.tree_leaves(a), pytree.tree_leaves(b)
    return len(ours) == len(theirs) and all(
        torch.equal(torch.nan_to_num(x), torch.nan_to_num(y)) if isinstance(x, Tensor) and isinstance(y, Tensor) else x == y or x != x
        for x, y in zip(ours, theirs, strict=True)
    )


def prepare(folder: str) -> None:
    """Import and use once what loading needs, and what torch imports late when an operator is refused."""
    import torch._subclasses.schema_check_mode

    torch.set_num_threads(1)
    for name, module in sorted(sys.modules.items()):
        if name.startswith(("irtool.", "torch.fx.", "torch.nn.", "torch._", "torchvision.ops")) and getattr(module, "__file__", None):
            linecache.getlines(str(module.__file__))  # torch.fx quotes the lines where a program fails
    for name in bases(folder):
        assert outcome(f"{folder}/base_{name}.safetensors") == "computes what it says", name
    for seed in range(-60, 0):
        path = Path(folder) / "first.safetensors"
        path.write_bytes(make(seed, folder)[1])
        outcome(str(path))


def attempt(watch: Watch, path: Path, content: bytes) -> tuple[str, Report]:
    """What a file comes to, and the report of the process in which it was opened."""
    path.write_bytes(content)
    report = watch.call(outcome, str(path), allowed=[str(path)])
    if report.ended != "returned":
        return f"BUG {report.ended} {report.error[:200]}", report
    if not report.clean:
        return f"BUG touched {report.modules[:3]} {report.opened[:3]} {report.events[:2]}", report
    return report.value, report
