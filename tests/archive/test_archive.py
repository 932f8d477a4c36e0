"""Saving and loading: both ways in a fresh process, files that are damaged, and files that mean harm."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import archive_nets
import pytest
import safetensors
import safetensors.torch
import torch
from archive_nets import CASES, Functional, Nested, Tied, WithOwn
from exported import by_export
from torch import Tensor, nn

import irtool
from irtool.archive.allowed import functions
from irtool.errors import FileError, OptionError, PlanError

ROOT = Path(__file__).resolve().parents[2]


def leaves(result: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(result) if isinstance(leaf, Tensor)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every case compressed and saved here, and loaded in two fresh processes."""
    folder = tmp_path_factory.mktemp("archives")
    torch.manual_seed(0)
    graphs = {}
    for name, case in CASES.items():
        graphs[name] = case.compress()
        inputs = case.inputs()
        torch.save(inputs, folder / f"{name}.inputs")
        torch.save(graphs[name].run(*inputs), folder / f"{name}.expected")
        irtool.save(graphs[name], folder / f"{name}.safetensors")
    found: dict[str, Any] = {"folder": folder, "graphs": graphs}
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    for way in ("alone", "model"):
        command = [sys.executable, str(ROOT / "tests/archive_process.py"), str(folder), way]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr[-2000:]
        found[way] = json.loads((folder / f"{way}.json").read_text())
    return found


@pytest.mark.parametrize("way", ["alone", "model"])
@pytest.mark.parametrize("name", CASES)
def test_a_fresh_process_gives_the_same_bits(saved: dict[str, Any], name: str, way: str) -> None:
    expected = torch.load(saved["folder"] / f"{name}.expected", weights_only=True)
    got = torch.load(saved["folder"] / f"{name}.{way}", weights_only=True)
    assert torch.utils._pytree.tree_structure(expected) == torch.utils._pytree.tree_structure(got)
    assert leaves(expected)
    for a, b in zip(leaves(expected), leaves(got), strict=True):
        assert torch.equal(a, b)
    assert saved[way][name]["text"] == saved["graphs"][name].text()


@pytest.mark.parametrize("way", ["alone", "model"])
@pytest.mark.parametrize("name", CASES)
def test_what_was_loaded_trains(saved: dict[str, Any], name: str, way: str) -> None:
    report = saved[way][name]
    assert report["without_gradient"] == []
    assert report["still"] == []
    assert report["moved"] > 0
    assert report["frozen"] == (["scale"] if name == "functional" else [])


@pytest.mark.parametrize("name", CASES)
def test_what_was_loaded_alone_exports(saved: dict[str, Any], name: str) -> None:
    assert saved["alone"][name]["exported"] > 5


def test_the_cases_prune_and_reach_each_tracer(saved: dict[str, Any]) -> None:
    removed = {name: sum(len(layer["removed"]) for layer in graph.history[0]["plan"]["layers"]) for name, graph in saved["graphs"].items()}
    assert all(removed.values()), removed
    assert {graph.tracer for graph in saved["graphs"].values()} >= {"symbolic", "export"}


def save_small(path: Path, **options: Any) -> irtool.FxGraph:
    """The functional net, as traced."""
    graph = irtool.trace(Functional(), torch.zeros(2, 3, 17, 17))
    irtool.save(graph, path, **options)
    return graph


def test_all_that_a_module_notes_comes_back(tmp_path: Path) -> None:
    model = Functional().train()
    model.bn.eval()
    graph = irtool.trace(model, torch.zeros(2, 3, 17, 17))
    irtool.save(graph, tmp_path / "a.safetensors")
    for loaded in (irtool.load(tmp_path / "a.safetensors"), irtool.load(tmp_path / "a.safetensors", Functional())):
        module = loaded.module
        assert (module.bn.momentum, module.bn.eps, module.conv.padding_mode) == (0.3, 1e-3, "reflect")
        assert module.training
        assert module.conv.training
        assert not module.bn.training
        assert module.conv.weight.is_contiguous(memory_format=torch.channels_last)
        assert list(module.state_dict()) == list(graph.module.state_dict())
        assert "shift" not in module.state_dict()
        assert torch.equal(module.shift, model.shift)
        assert module.index.dtype == torch.int64
        dropout = next(child for child in module.modules() if isinstance(child, nn.Dropout))
        assert dropout.p == 0.25
        assert repr(module.norm) == repr(model.norm)


def test_shared_weights_stay_shared(tmp_path: Path) -> None:
    irtool.save(irtool.trace(Tied(), torch.zeros(2, 3, 8, 8)), tmp_path / "a.safetensors")
    for loaded in (irtool.load(tmp_path / "a.safetensors"), irtool.load(tmp_path / "a.safetensors", Tied())):
        assert loaded.module.b.weight is loaded.module.a.weight
    with safetensors.safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert {"a.weight", "b.weight"} & set(file.keys()) == {"a.weight"}


def test_plain_constants_of_an_exported_program_come_back(tmp_path: Path) -> None:
    inputs = CASES["nested"].inputs()
    with by_export():
        graph = irtool.trace(Nested(plain=True), inputs)
    assert graph.tracer == "export"
    irtool.save(graph, tmp_path / "a.safetensors")
    loaded = irtool.load(tmp_path / "a.safetensors")
    assert "order" not in loaded.module.state_dict()
    assert torch.equal(loaded.run(*inputs)["out"], graph.run(*inputs)["out"])


def test_equal_models_give_equal_files(tmp_path: Path) -> None:
    graph = irtool.trace(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), torch.zeros(1, 3, 8, 8))
    contents = set()
    for number in range(8):
        irtool.save(graph, tmp_path / f"{number}.safetensors", metadata={"a": 1})
        contents.add((tmp_path / f"{number}.safetensors").read_bytes())
    assert len(contents) == 1


def test_what_was_loaded_can_be_pruned_and_saved_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    first = CASES["preresnet-select-absorb"].compress()
    irtool.save(first, tmp_path / "a.safetensors")
    again = irtool.load(tmp_path / "a.safetensors")
    again = irtool.fold_batchnorm(irtool.prune(again, irtool.plan(again, "l2", 0.3, residual="couple")))
    irtool.save(again, tmp_path / "b.safetensors")
    x = torch.randn(2, 3, 32, 32)
    assert [step["step"] for step in again.history] == ["prune", "prune", "fold_batchnorm"]
    assert torch.equal(irtool.load(tmp_path / "b.safetensors").run(x), again.run(x))
    model = irtool.models.PreResNet(20)
    assert torch.equal(irtool.load(tmp_path / "b.safetensors", model).run(x), again.run(x))


def test_loading_into_a_model_leaves_it_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_small(tmp_path / "a.safetensors")
    model = Functional()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    loaded = irtool.load(tmp_path / "a.safetensors", model)
    with torch.no_grad():
        loaded.module.weight.zero_()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_class_of_the_users_own_needs_its_class(tmp_path: Path) -> None:
    torch.manual_seed(0)
    path, x = tmp_path / "a.safetensors", torch.randn(2, 3, 9, 9)
    graph = irtool.trace(WithOwn(), x, leaf=["own"])
    pruned = irtool.prune(graph, irtool.plan(graph, ratio=0.5, ignore=["a"]))
    with pytest.warns(UserWarning, match=r"does not stand alone: own is a archive_nets\.Own.*Load it into the class"):
        irtool.save(pruned, path)
    with pytest.raises(FileError, match=r"does not stand alone.*irtool\.load\(path, model="):
        irtool.load(path)
    loaded = irtool.load(path, irtool.trace(WithOwn(), x, leaf=["own"]))
    assert torch.equal(loaded.run(x), pruned.run(x))
    assert "Own" in str(irtool.read_info(path).incomplete)


def test_facts_travel_with_the_weights(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_small(path, preprocessing={"mean": [0.5, 0.4, 0.3]}, metadata={"classes": ["cat", "dog"]})
    info = irtool.read_info(path)
    assert info.preprocessing == {"mean": [0.5, 0.4, 0.3]}
    assert info.metadata == {"classes": ["cat", "dog"]}
    assert (info.torch, info.tracer, info.history, info.incomplete) == (torch.__version__, "symbolic", (), None)
    assert info.example_inputs[0].shape == (2, 3, 17, 17)
    with pytest.raises(OptionError, match="Pass a dict of numbers"):
        save_small(path, preprocessing={"mean": torch.zeros(3)})


def test_another_model_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_small(path)
    with pytest.raises(
        FileError, match=r"belongs to another model.*weight is a parameter of 12x3x3x3 in the file.*made with the same arguments"
    ):
        irtool.load(path, nn.Sequential(nn.Conv2d(3, 12, 3), nn.AdaptiveAvgPool2d(1)))
    irtool.save(CASES["preresnet-couple-drop"].compress(), path)
    with pytest.raises(PlanError, match="the model it was made for"):
        irtool.load(path, irtool.models.PreResNet(11))


def damaged(path: Path, kind: str) -> Path:
    """A file that cannot be read, of one kind or another."""
    save_small(path)
    makers: dict[str, Callable[[], Any]] = {
        "missing": path.unlink,
        "folder": lambda: (path.unlink(), path.mkdir()),
        "truncated": lambda: path.write_bytes(path.read_bytes()[:-100]),
        "cut in the header": lambda: path.write_bytes(path.read_bytes()[:500]),
        "empty": lambda: path.write_bytes(b""),
        "pickle": lambda: torch.save({"a": torch.zeros(1)}, path),
        "foreign": lambda: safetensors.torch.save_file({"a": torch.zeros(1)}, path),
        "no json": lambda: safetensors.torch.save_file({"a": torch.zeros(1)}, path, metadata={"irtool": "{"}),
        "newer": lambda: tamper(path, lambda header: header.update(version=99)),
        "incomplete": lambda: tamper(path, lambda header: header.pop("tensors")),
        "unknown step": lambda: tamper(path, lambda header: header.update(history=[{"step": "knit"}])),
        "wrong shape": lambda: tamper(path, lambda header: header["tensors"]["bn.weight"].update(data="bn.nothing")),
    }
    makers[kind]()
    return path


def tamper(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Change the JSON in a file."""
    with safetensors.safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["irtool"])
        tensors = {key: file.get_tensor(key).clone() for key in list(file.keys())}
    edit(header)
    safetensors.torch.save_file(tensors, path, metadata={"irtool": json.dumps(header)})


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("missing", "no such file. Check the path"),
        ("folder", "is a folder. Pass a file that irtool.save wrote"),
        ("truncated", "truncated, or no safetensors file .* Pass a file"),
        ("cut in the header", "truncated, or no safetensors file .* Pass a file"),
        ("empty", "truncated, or no safetensors file .* Pass a file"),
        ("pickle", "truncated, or no safetensors file .* Pass a file"),
        ("foreign", "that irtool.save did not write. Load its tensors into your model"),
        ("no json", "its header is damaged. Pass a file"),
        ("newer", "of format version 99, this irtool reads up to 1. Install a newer irtool"),
        ("incomplete", "damaged .*tensors.* Save it again"),
        ("wrong shape", "damaged .*bn.nothing.* Save it again"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, kind: str, text: str) -> None:
    path = damaged(tmp_path / "a.safetensors", kind)
    with pytest.raises(FileError, match=text) as caught:
        irtool.load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_step_that_is_not_known(tmp_path: Path) -> None:
    path = damaged(tmp_path / "a.safetensors", "unknown step")
    assert irtool.load(path).history[0]["step"] == "knit"
    with pytest.raises(FileError, match=r"step 'knit' cannot be replayed\. Load the file without model="):
        irtool.load(path, Functional())


def test_nothing_is_left_where_writing_fails(tmp_path: Path) -> None:
    target = tmp_path / "a.safetensors"
    target.mkdir()
    (target / "full").touch()
    with pytest.raises(FileError, match="Give the path of a file"):
        save_small(target)
    assert sorted(tmp_path.iterdir()) == [target]


def node_of(header: dict[str, Any], op: str) -> dict[str, Any]:
    return next(node for node in header["program"]["nodes"] if node["op"] == op)


def calling(name: str, *args: Any) -> Callable[[dict[str, Any]], Any]:
    """Make the first function node call something else."""
    return lambda header: node_of(header, "call_function").update(target=name, args=list(args) or ["touch pwned"], kwargs={})


INJECTION = "x=__import__('os').system('touch pwned')"
HARM: dict[str, Callable[[dict[str, Any]], Any]] = {
    "os.system": calling("os.system"),
    "posix.system": calling("posix.system"),
    "torch.os.system": calling("torch.os.system"),
    "eval": calling("builtins.eval"),
    "exec": calling("builtins.exec"),
    "import": calling("builtins.__import__"),
    "torch.load": calling("torch.load"),
    "torch.hub.load": calling("torch.hub.load"),
    "torch.from_file": calling("torch.from_file", "pwned", True, 10),
    "aten.from_file": calling("torch.ops.aten.from_file.default", "pwned", True, 10),
    "aten.save": calling("torch.ops.aten.save.default"),
    "another namespace": calling("torch.ops.image.write_file.default"),
    "methodcaller": calling("operator.methodcaller"),
    "operator.call": calling("operator.call"),
    "dunder attribute": calling("builtins.getattr", {"node": "x"}, "__class__"),
    "computed attribute": calling("builtins.getattr", {"node": "x"}, {"node": "x"}),
    "function as a value": calling("builtins.max", [1, 2], {"function": "os.system"}),
    "dunder method": lambda header: node_of(header, "call_method").update(target="__reduce_ex__"),
    "method with a callable": lambda header: node_of(header, "call_method").update(target="apply_"),
    "code in a placeholder": lambda header: node_of(header, "placeholder").update(target=INJECTION),
    "code in a module path": lambda header: node_of(header, "call_module").update(target=f'a", {INJECTION}) #'),
    "code in a node's name": lambda header: node_of(header, "call_module").update(name=INJECTION),
    "code in a keyword": lambda header: node_of(header, "call_function").update(kwargs={INJECTION: 1}),
    "a described tensor for an output": lambda header: node_of(header, "output").update(args=[{"tensor": [[1, 2], {"dtype": "float32"}]}]),
    "code in the class's name": lambda header: header["program"].update(name=INJECTION),
    "code in the nesting": lambda header: header["program"].update(nesting={"arguments": [INJECTION], "inputs": {"tuple": [{"tuple": [0]}, {"dict": []}]}, "outputs": None}),
    "keyword arguments": lambda header: header["program"].update(nesting={"arguments": ["x"], "inputs": {"tuple": [{"tuple": [0]}, {"dict": [[INJECTION, 0]]}]}, "outputs": None}),
    "an object outside the program": lambda header: node_of(header, "get_attr").update(target="conv.__class__"),
    "foreign class": lambda header: header["modules"]["bn"].update({"class": "subprocess.Popen"}),
    "function as a class": lambda header: header["modules"]["bn"].update({"class": "torch.nn.modules.module.register_module_forward_hook"}),
    "class of an import": lambda header: header["modules"]["bn"].update({"class": "torch.nn.modules.module.OrderedDict"}),
    "method replaced": lambda header: header["modules"]["bn"]["attributes"].update(forward={"function": "math.sqrt"}),
    "hooks replaced": lambda header: header["modules"]["bn"]["attributes"].update(_forward_hooks={"dict": []}),
    "method replaced by a tensor": lambda header: header["tensors"].update({"bn.forward": {"kind": "attribute", "data": "bn.weight"}}),
    "unknown kind of value": lambda header: node_of(header, "call_function").update(args=[{"pickle": "gASV"}]),
    "unknown constant": lambda header: node_of(header, "call_function").update(args=[{"dtype": "load"}]),
    "unknown kind of node": lambda header: node_of(header, "call_function").update(op="call_anything"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HARM)
def test_a_file_that_means_harm_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    path = tmp_path / "a.safetensors"
    save_small(path)
    tamper(path, HARM[kind])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileError, match=re.escape(str(path)) + ": refused: .*Do not use this file") as caught:
        irtool.load(path)
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == [path]


def test_the_table_of_functions_reaches_nothing_else() -> None:
    names = {name.rpartition(".")[2] for name in functions()}
    assert len(names) > 250
    assert names & {"load", "save", "from_file", "system", "eval", "exec", "open", "compile", "setattr", "globals", "vars", "call"} == set()
    assert all(not name.startswith("__") for name in names)


def test_the_other_process_needs_no_class() -> None:
    source = (ROOT / "tests/archive_process.py").read_text()
    before_branch = source.split('if way == "model"')[0]
    assert archive_nets.__name__ not in before_branch.replace(before_branch.split('"""')[1], "")
