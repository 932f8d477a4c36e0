"""Attempts of hostile archives, each in a process of its own: no code runs, no memory is reached, nothing hangs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from archive_nets import Functional, Recurrent
from audited import Report, Watch
from test_archive import tamper
from torch import nn

import irtool
from irtool.errors import IrtoolError

Edit = Callable[[dict[str, Any]], Any]
X = {"node": "x"}


class Small(nn.Module):
    """One layer and one function."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).relu()


def load_and_run(path: str) -> list[str]:
    """Load a file, then run it on its example inputs: how each ended. In the watched process."""
    try:
        graph = irtool.load(path)
    except IrtoolError as error:
        return [f"{type(error).__name__}: {error}"]
    try:
        graph.run(*graph.example_inputs)
    except Exception as error:
        return ["loaded", f"{type(error).__name__}: {error}"]
    return ["loaded", "ran"]


def prepare(folder: str) -> None:
    """First uses, whose imports are nobody's fault."""
    torch.set_num_threads(1)
    path = Path(folder) / "prepared.safetensors"
    irtool.save(irtool.trace(Functional(), torch.zeros(2, 3, 17, 17)), path)
    assert load_and_run(str(path)) == ["loaded", "ran"]
    tamper(path, lambda header: header["program"]["nodes"][1].update(args=[]))
    load_and_run(str(path))


@pytest.fixture(scope="module")
def watch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watch]:
    with Watch(prepare, str(tmp_path_factory.mktemp("prepared"))) as made:
        yield made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "a.safetensors"
    irtool.save(irtool.trace(Small(), torch.zeros(1, 3, 8, 8)), found)
    return found


def method(name: str, *args: Any, on: Any = X, kwargs: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"op": "call_method", "target": name, "args": [on, *args], "kwargs": kwargs or {}}


def function(name: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
    return {"op": "call_function", "target": name, "args": list(args), "kwargs": kwargs}


def program(*nodes: dict[str, Any]) -> Edit:
    """A program of these nodes after the placeholder `x`; they are called n0, n1 ..., and the last is the output."""

    def edit(header: dict[str, Any]) -> None:
        named = [{"name": f"n{index}", **node} for index, node in enumerate(nodes)]
        entry = {"name": "x", "op": "placeholder", "target": "x"}
        output = {"name": "output", "op": "output", "target": "output", "args": [{"node": f"n{len(nodes) - 1}"}]}
        header["program"]["nodes"] = [entry, *named, output]

    return edit


def n(index: int) -> dict[str, str]:
    return {"node": f"n{index}"}


def doubled(times: int) -> list[dict[str, Any]]:
    return [method("size"), *(function("operator.add", n(index), n(index)) for index in range(times))]


def squared(times: int) -> list[dict[str, Any]]:
    """The batch size times itself: 1 on the example, and without end on two images."""
    return [
        method("size", 0),
        *(function("operator.mul", n(index), n(index)) for index in range(times)),
        function("operator.add", X, n(times)),
    ]


CODE: dict[str, Edit] = {
    "type of a storage": program(method("untyped_storage"), method("type", "evil.Class", on=n(0))),
    "type of a typed storage": program(method("storage"), method("type", "evil.Class", on=n(0))),
    "type of a tensor": program(method("type", "evil.Class")),
    "type of a storage found by attribute": program(function("builtins.getattr", X, "_typed_storage"), method("type", "evil.Class", on=n(0))),
    "to a device by name": program(method("to", "privateuseone")),
    "to a module": program(method("to", "evil")),
    "numpy": program(method("numpy"), method("tofile", "evil.bin", on=n(0))),
    "a device of a plugin": program(method("to", {"device": "privateuseone:0"})),
    "a function as an argument": program(method("apply_", {"function": "torch.load"})),
    "a function of a module": lambda header: header["modules"]["conv"]["attributes"].update(padding_mode={"function": "torch.load"}),
    "an activation by name": lambda header: header["modules"]["conv"].update({"class": "torch.nn.modules.transformer.TransformerEncoderLayer"}),
    "a lazy class": lambda header: header["modules"]["conv"].update({"class": "torch.nn.modules.conv.LazyConv2d"}),
    "an argument that hides torch": lambda header: header["program"]["nodes"][0].update(target="torch"),
    "from_file": program(function("torch.from_file", "evil.bin", True, 10)),
    "aten.from_file": program(function("torch.ops.aten.from_file.default", "evil.bin", True, 10)),
    "printing": program(function("torch.ops.aten._print.default", "x")),
    "format": program(method("__format__", "")),
    "names": program(method("rename", "evil")),
    "grad function": program(function("builtins.getattr", X, "grad_fn")),
    "shared memory": program(method("share_memory_")),
    "hook": program(method("register_hook", {"function": "torch.relu"})),
}  # fmt: skip
MEMORY: dict[str, Edit] = {
    "resize of a storage": program(method("untyped_storage"), method("resize_", 0, on=n(0)), method("relu")),
    "resize": program(method("resize_", 10**6), method("relu", on=n(0))),
    "set": program(method("set_")),
    "alias of another shape": program(function("torch.ops.aten._reshape_alias.default", X, [10**6], [1])),
    "as_strided": program(method("as_strided", [10**6], [1])),
    "aten.as_strided": program(function("torch.ops.aten.as_strided.default", X, [10**6], [1], 10**9)),
    "as_strided_scatter": program(function("torch.as_strided_scatter", X, X, [1], [1], 10**9)),
    "empty_strided": program(function("torch.empty_strided", [10], [1])),
    "sparse without checks": program(function("torch.ops.aten._sparse_coo_tensor_unsafe.default", X, X, [4])),
    "sparse": program(function("torch.sparse_coo_tensor", X, X, [4])),
    "unsafe index": program(function("torch.ops.aten._unsafe_index.Tensor", X, [X])),
    "data_ptr": program(method("data_ptr")),
    "repeats and a size that do not fit": program(function("torch.ops.aten.repeat_interleave.self_Tensor", X, X, 0, output_size=1)),
    "resize by a scale that lies": program(function("torch.ops.aten.upsample_nearest2d.default", X, [9, 9], 1e-30, 1e-30)),
    "statistics of another size": program(function("torch.ops.aten.native_batch_norm.default", X, None, None, None, None, True, 0.1, 1e-5)),
    "boxes of no image": program(function("torch.ops.torchvision.roi_align.default", X, X, 1.0, 2, 2, 2, False)),
    "ctc": program(function("torch.ctc_loss", X, X, [1], [1])),
    "quantised": program(method("to", {"dtype": "qint8"})),
    "sparse layout": program(method("to_sparse")),
    "unpooling": program(function("torch.nn.functional.max_unpool2d", X, X, 2)),
    "a product into another type": program(function("torch.ops.aten.baddbmm.dtype", X, X, X, {"dtype": "float32"})),
    "a division of numbers by zero": program(function("torch.ops.aten.remainder.int", -2, 0)),
    "padding that overflows": program(function("torch.nn.functional.unfold", X, 2, 1, 2**62, 1)),
    "padding that overflows on two images": program(*squared(5)[:-1], function("torch.nn.functional.unfold", X, 2, 1, n(5), 1)),
    "an overload of TorchScript alone": program(function("torch.ops.aten.to.prim_dtype", X, None, False, True)),
    "embedding bag": program(function("torch.nn.functional.embedding_bag", X, X)),
}  # fmt: skip
ENDLESS: dict[str, Edit] = {
    "factorial": program(function("math.factorial", 10**8)),
    "rounded to a hundred million digits before the point": program(function("builtins.round", 5, -(10**8))),
    "a window of a terabyte": program(function("torch.hann_window", 10**12)),
    "a transform to a terabyte": program(function("torch.fft.fftn", X, [10**12])),
    "the largest of what is no number": program(function("builtins.max", "a", "b")),
    "power": program(function("builtins.pow", 10, 10**10)),
    "operator.pow": program(function("operator.pow", 10, 10**10)),
    "sum of a range": program(function("builtins.range", 10**11), function("builtins.sum", n(0))),
    "a range as data": program(function("builtins.sum", {"range": [0, 10**11, 1]})),
    "a tuple doubled": program(*doubled(34)),
    "a shape repeated": program(method("size"), function("operator.mul", n(0), 10**12)),
    "a batch size squared": program(*squared(40)),
    "zeros": program(function("torch.zeros", [10**12])),
    "full": program(function("torch.full", [10**6, 10**6], 1.0)),
    "arange": program(function("torch.arange", 10**12)),
    "linspace": program(function("torch.linspace", 0, 1, 10**12)),
    "aten.zeros": program(function("torch.ops.aten.zeros.default", [10**12], device={"device": "cpu"}, pin_memory=False)),
    "new_zeros": program(method("new_zeros", [10**12])),
    "on the processor": program(method("new_zeros", [10**12], kwargs={"device": {"device": "cpu"}})),
    "many zeros": program(*(function("torch.zeros", [1 << 26]) for _ in range(40))),
    "expanded and taken apart": program(function("torch.zeros", [1]), method("expand", 2**33, on=n(0)), method("unbind", on=n(1))),
    "split into single ones": program(function("torch.zeros", [2**25]), method("split", 1, on=n(0))),
    "repeated": program(method("repeat", 10**4, 10**4, 10**4, 10**4)),
    "padded": program(function("torch.nn.functional.pad", X, [10**10, 10**10])),
    "interpolated": program(function("torch.nn.functional.interpolate", X, 10**7)),
    "example inputs": lambda header: header.update(inputs={"tuple": [{"tensor": [[10**6, 10**6], {"dtype": "float32"}]}]}),
    "nested": lambda header: header["program"]["nodes"][1].update(args=[nested(400)]),
    "long integers": program(function("operator.add", X, 2**200)),
    "nodes": lambda header: header["program"].update(nodes=header["program"]["nodes"][:1] + [{"name": f"a{i}", "op": "call_method", "target": "relu", "args": [X]} for i in range(20_000)] + header["program"]["nodes"][1:]),
}  # fmt: skip


def nested(depth: int) -> Any:
    value: Any = X
    for _ in range(depth):
        value = [value]
    return value


def attempt(watch: Watch, path: Path, edit: Edit) -> Report:
    """Load what was made of the file, with a module to import and files to write beside it."""
    tamper(path, edit)
    beside = path.parent / "evil.py"
    beside.write_text(f"open({str(path.parent / 'pwned')!r}, 'w')\n")
    before = sorted(path.parent.iterdir())
    report = watch.call(load_and_run, str(path), allowed=[str(path)])
    assert sorted(path.parent.iterdir()) == before
    return report


@pytest.mark.parametrize("kind", CODE | MEMORY | ENDLESS)
def test_a_hostile_file_is_refused(watch: Watch, path: Path, kind: str) -> None:
    report = attempt(watch, path, (CODE | MEMORY | ENDLESS)[kind])
    assert report.ended == "returned", report
    assert len(report.value) == 1, report.value
    assert report.value[0].startswith(f"FileError: {path}: "), report.value
    assert "refused: it" in report.value[0] or "damaged or altered" in report.value[0]
    assert "\n" not in report.value[0]
    assert "allocate memory" not in report.value[0]
    assert report.clean, report
    assert report.memory < 1 << 30


def test_a_recurrent_layer_over_an_expanded_axis(watch: Watch, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    irtool.save(irtool.trace(Recurrent(), torch.zeros(2, 1, 8, 12)), path)

    def edit(header: dict[str, Any]) -> None:
        nodes = header["program"]["nodes"]
        nodes.insert(1, {"name": "slow", "op": "call_method", "target": "repeat", "args": [X, 1, 1, 1, 10**6]})
        nodes[2]["args"] = [{"node": "slow"}]

    report = attempt(watch, path, edit)
    assert report.ended == "returned"
    assert "more than 65,536 parts" in report.value[0]


@pytest.mark.parametrize("edit", ["weight", "hidden_size", "num_layers", "mode", "names"])
def test_a_recurrent_layer_whose_weights_do_not_fit(watch: Watch, tmp_path: Path, edit: str) -> None:
    """torch's own kernel reads beyond the end of such a weight."""
    path = tmp_path / "a.safetensors"
    irtool.save(irtool.trace(Recurrent(), torch.zeros(2, 1, 8, 12)), path)
    edits: dict[str, Edit] = {
        "weight": lambda header: header["tensors"]["lstm.weight_ih_l0"].update(data="lstm.bias_ih_l0"),
        "hidden_size": lambda header: header["modules"]["lstm"]["attributes"].update(hidden_size=10**6),
        "num_layers": lambda header: header["modules"]["lstm"]["attributes"].update(num_layers=10**6),
        "mode": lambda header: header["modules"]["lstm"]["attributes"].update(mode="GRU"),
        "names": lambda header: header["modules"]["lstm"]["attributes"]["_flat_weights_names"].reverse(),
    }
    report = attempt(watch, path, edits[edit])
    assert report.ended == "returned", report
    assert "damaged or altered (lstm: calls LSTM with " in report.value[0]
    assert report.clean, report


def test_a_header_that_is_too_long(watch: Watch, path: Path) -> None:
    tamper(path, lambda header: header.update(metadata={"a": "x" * (33 << 20)}))
    report = watch.call(load_and_run, str(path), allowed=[str(path)])
    assert "its header has" in report.value[0], report
    assert report.clean


def test_what_is_refused_is_not_saved_as_standing_alone(tmp_path: Path) -> None:
    class Strided(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.as_strided((2, 2), (1, 1))

    graph = irtool.trace(Strided(), torch.zeros(3, 3))
    with pytest.warns(UserWarning, match="does not stand alone: as_strided calls a method 'as_strided'"):
        irtool.save(graph, tmp_path / "a.safetensors")
    assert torch.equal(irtool.load(tmp_path / "a.safetensors", Strided()).run(torch.ones(3, 3)), torch.ones(2, 2))


def test_devices_are_not_kept(path: Path) -> None:
    tamper(path, program(method("to", {"device": "cuda:0"}), method("relu", on=n(0))))
    graph = irtool.load(path)
    assert graph.run(*graph.example_inputs).device.type == "cpu"
    assert safetensors.torch.load_file(path)
