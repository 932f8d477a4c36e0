"""bench/int8_schemes.py on a small net with data of its own; a second run takes up what is done."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from quant_nets import Mixed, exported, images

import irtool
from irtool.engines.onnxruntime.calibrate import calibrate
from irtool.engines.onnxruntime.prepare import prepared
from irtool.models import VGG
from irtool.quant import Scheme, make_recipe, place
from irtool.train import load_data

BENCH = Path(__file__).parent.parent / "bench"
if not BENCH.is_dir():
    pytest.skip("bench/ is not here", allow_module_level=True)
sys.path.insert(0, str(BENCH))

import int8_bench  # noqa: E402
import int8_schemes  # noqa: E402
import mnn_operators  # noqa: E402

sys.path.remove(str(BENCH))


def test_a_model_with_its_own_data(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    data = load_data("digits", limit=20, channels=3)
    graph = irtool.trace(VGG(11, width=0.125).eval(), torch.zeros(2, *data.preprocessing.input_shape))
    irtool.save(graph, tmp_path / "net.safetensors", preprocessing=data.preprocessing.to_dict())
    options = {"only": "mine", "model": f"mine={tmp_path / 'net.safetensors'}", "data": "mine=digits", "images": "30", "calibration": "16",
               "threads": "1", "seconds": "0.05", "shared": str(tmp_path), "out": str(tmp_path / "int8.json")}  # fmt: skip
    arguments = ["int8_schemes.py", *(word for name, value in options.items() for word in (f"--{name}", value))]
    monkeypatch.setattr(sys, "argv", arguments)
    int8_schemes.main()
    said = capsys.readouterr().out
    first = json.loads((tmp_path / "int8.json").read_text())["models"]["mine"]
    assert first["images"] == 30
    assert (
        set(first["latency"]["1"]) == set(first["rows"]) >= {"onnxruntime, int8", "MNN, int8", "MNN's own KL", "MNN, 8-bit weights alone"}
    )
    for title in ("onnxruntime", "MNN"):
        share = first["rows"][f"{title}, int8"]["bytes"] / first["rows"][f"{title}, float"]["bytes"]
        drop = first["rows"][f"{title}, float"]["accuracy"] - first["rows"][f"{title}, int8"]["accuracy"]
        assert f"{'holds' if share <= 0.37 and drop <= 0.3 else 'FAILS'}: {title} int8 loses {drop:.2f}" in said
    assert sum(first["int8_tensors"]["MNN, int8"].values()) == 13  # 8 of 9 layers, 4 pools, the input
    monkeypatch.setattr(sys, "argv", [*arguments, "--resume"])
    monkeypatch.setattr(int8_schemes, "one", None)  # nothing is measured
    int8_schemes.main()
    assert json.loads((tmp_path / "int8.json").read_text())["models"]["mine"] == first


def test_one_scale_is_the_widest_of_those_that_meet(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = prepared(exported(Mixed(), tmp_path))
    placement, scheme = place(model), Scheme(method="minmax")
    stats = calibrate(model, placement.tensors, [images(16)], threads=1)
    united = int8_bench.with_one_scale(model, placement, stats, scheme)
    recipe, before = make_recipe(model, united, stats, scheme), make_recipe(model, placement, stats, scheme)
    groups = {node.op_type: [*node.input, *node.output] for node in model.graph.node if node.op_type in ("Add", "Concat")}
    assert set(groups) == {"Add", "Concat"}
    for names in groups.values():
        met = [name for name in names if name in recipe.activations]
        assert len({recipe.activations[name] for name in met}) == 1
        assert recipe.activations[met[0]].scale == max(before.activations[name].scale for name in met)
    alone = next(layer.output for layer in placement.layers if layer.op == "Gemm")
    assert recipe.activations.get(alone) == before.activations.get(alone)


@pytest.mark.parametrize("kind", mnn_operators.KINDS)
def test_mnn_computes_operators_as_simulated(kind: str, tmp_path: Path) -> None:
    cases = list(mnn_operators.KINDS[kind]())
    rows = [mnn_operators.measure(case, tmp_path) for case in cases[:: len(cases) // 6]]
    rows += [mnn_operators.measure(case, tmp_path) for case in cases if case.name.startswith("maximum")]
    assert len(rows) >= 6
    assert not [row for row in rows if mnn_operators.is_worse(row)]
    assert mnn_operators.is_worse({"mnn": 40.0, "simulation": 45.0})
