"""bench/int8.py on a small net with data of its own; a second run takes up what is done."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

import irtool
from irtool.models import VGG
from irtool.train import load_data

BENCH = Path(__file__).parent.parent / "bench"
if not BENCH.is_dir():
    pytest.skip("bench/ is not here", allow_module_level=True)
sys.path.insert(0, str(BENCH))

import int8  # noqa: E402

sys.path.remove(str(BENCH))


def test_every_form_of_a_net_is_scored_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    data = load_data("digits", limit=40, channels=3)
    graph = irtool.trace(VGG(11, width=0.0625).eval(), torch.zeros(2, *data.preprocessing.input_shape))
    irtool.save(graph, tmp_path / "net.safetensors", preprocessing=data.preprocessing.to_dict())
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table of bench/int8.py -->\nold\n<!-- end of the table -->\nafter\n")
    options = {"only": "mine", "model": f"mine={tmp_path / 'net.safetensors'}", "data": "digits", "engine": "onnxruntime", "test": "30",
               "calibration": "16", "work": str(tmp_path / "work"), "out": str(tmp_path / "int8.json"), "page": str(page)}  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["int8.py", *(word for name, value in options.items() for word in (f"--{name}", value))])
    monkeypatch.setattr(int8, "ROUNDS", 6)
    int8.main()
    net = json.loads((tmp_path / "int8.json").read_text())["nets"]["mine"]
    rows = net["engines"]["onnxruntime"]
    assert net["test"] == 30
    assert rows.keys() >= {"float", "weights8", "nearest", "int8", "guarded"}
    assert rows["float"]["agreement"] == 100
    assert rows["int8"]["bytes"] < rows["float"]["bytes"]
    assert rows["int8"]["sqnr_db"] > 15
    assert rows["int8"]["lost"] == pytest.approx(rows["float"]["accuracy"] - rows["int8"]["accuracy"])
    assert set(rows["int8"]["time"]) == {"1", "2"}
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert f"| int8, all layers, fitted | {rows['int8']['accuracy']:.2f} % |" in text
    monkeypatch.setattr(int8, "scored_rows", None)  # nothing is scored again, and what was timed stays
    monkeypatch.setattr(int8, "is_known", lambda ratio, interval: False)
    int8.main()
    again = json.loads((tmp_path / "int8.json").read_text())["nets"]["mine"]["engines"]["onnxruntime"]
    for form, row in rows.items():
        assert again[form] | {"load": 0} == row | {"load": 0}
