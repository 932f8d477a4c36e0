"""Files whose header was altered: loading finds out, not the first run; and what cannot be saved says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_archive import node_of, save_small, tamper

import irtool
from irtool.atomic_files import parse_json
from irtool.errors import FileError, OptionError

Edit = Callable[[dict[str, Any]], Any]


def attribute(module: str, **values: Any) -> Edit:
    return lambda header: header["modules"][module]["attributes"].update(values)


PROGRAMS: dict[str, Edit] = {
    "attribute gone": lambda header: header["modules"]["conv"]["attributes"].pop("dilation"),
    "all attributes gone": lambda header: header["modules"]["bn"].update(attributes={}),
    "parameter gone": lambda header: header["tensors"].pop("bn.bias"),
    "buffer gone": lambda header: header["tensors"].pop("bn.running_var"),
    "unknown padding": attribute("conv", padding_mode="x"),
    "padding of another kind": attribute("conv", padding_mode=7),
    "epsilon of another kind": attribute("bn", eps={"range": [0, 10**15, 1]}),
    "momentum of another kind": attribute("bn", momentum="x"),
    "no groups": attribute("conv", groups=0),
    "argument of a function": lambda header: node_of(header, "call_function").update(kwargs={"function": "x"}),
}  # fmt: skip


@pytest.mark.parametrize("kind", PROGRAMS)
def test_a_program_that_cannot_run_is_refused_when_loaded(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.safetensors"
    save_small(path)
    tamper(path, PROGRAMS[kind])
    with pytest.raises(FileError, match=r"damaged or altered \(.*\)\. Save it again with irtool\.save") as caught:
        irtool.load(path)
    assert "\n" not in str(caught.value)


FIELDS: dict[str, Edit] = {
    "history": lambda header: header.update(history="prune"),
    "a step": lambda header: header.update(history=[["prune"]]),
    "a step's name": lambda header: header.update(history=[{"step": 3}]),
    "torch": lambda header: header.update(torch=None),
    "inputs": lambda header: header.update(inputs="x"),
    "training": lambda header: header.update(training=[]),
    "metadata": lambda header: header.update(metadata=[1]),
    "version 0": lambda header: header.update(version=0),
    "version true": lambda header: header.update(version=True),
    "version text": lambda header: header.update(version="1"),
}


@pytest.mark.parametrize("read", [irtool.load, irtool.read_info])
@pytest.mark.parametrize("kind", FIELDS)
def test_a_field_of_another_kind_is_refused(tmp_path: Path, kind: str, read: Callable[[Path], Any]) -> None:
    path = tmp_path / "a.safetensors"
    save_small(path)
    tamper(path, FIELDS[kind])
    with pytest.raises(FileError, match=r"damaged.*[Ss]ave it again"):
        read(path)


def test_metadata_nested_too_deep_is_refused(tmp_path: Path) -> None:
    deep: dict[str, Any] = {}
    for _ in range(5000):
        deep = {"a": deep}
    for options in ({"metadata": deep}, {"preprocessing": deep}):
        with pytest.raises(OptionError, match=f"{next(iter(options))}: is not JSON data .*Pass a dict of numbers"):
            save_small(tmp_path / "a.safetensors", **options)
    assert not list(tmp_path.iterdir())


def nested(levels: int) -> Any:
    """An empty list within so many lists."""
    found: list[Any] = []
    for _ in range(levels):
        found = [found]
    return found


def test_nesting_has_a_limit_of_our_own(tmp_path: Path) -> None:
    """Python's recursion limit is another one in each release."""
    save_small(tmp_path / "a.safetensors", metadata={"deep": nested(400)})
    assert irtool.read_info(tmp_path / "a.safetensors").metadata == {"deep": nested(400)}
    graph = save_small(tmp_path / "b.safetensors")
    graph.history = ({"step": "mine", "value": nested(501)},)
    with pytest.raises(FileError, match=r"history or program is no JSON data \(nested too deep\)"):
        irtool.save(graph, tmp_path / "c.safetensors")
    assert parse_json("[" * 500 + "]" * 500) == nested(499)
    with pytest.raises(ValueError, match="nested too deep"):
        parse_json("[" * 501 + "]" * 501)


@pytest.mark.parametrize("value", [{1, 2}, float("nan"), object()])
def test_a_history_that_is_no_data_is_refused(tmp_path: Path, value: Any) -> None:
    graph = save_small(tmp_path / "a.safetensors")
    graph.history = ({"step": "mine", "value": value},)
    with pytest.raises(FileError, match=r"history or program is no JSON data.*plain numbers"):
        irtool.save(graph, tmp_path / "b.safetensors")


def test_a_path_with_nul_is_refused() -> None:
    with pytest.raises(FileError, match=r"NUL sign in its name\. Check the path"):
        save_small(Path("a\0b.safetensors"))
    with pytest.raises(FileError, match="Check the path"):
        irtool.load("a\0b.safetensors")
