"""bench/mnn_sdk.py on a small net, with one build in both places; and what it says of outputs that differ."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

import irtool
from irtool.models import VGG

BENCH = Path(__file__).parents[2] / "bench"
if not BENCH.is_dir():
    pytest.skip("bench/ is not here", allow_module_level=True)
sys.path.insert(0, str(BENCH))

import mnn_sdk  # noqa: E402

sys.path.remove(str(BENCH))


def test_it_says_how_an_sdk_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MNN_ROOT", raising=False)
    with pytest.raises(SystemExit, match=r"no MNN SDK is named\. Give --mnn-root or set MNN_ROOT"):
        mnn_sdk.root_of(None)
    monkeypatch.setenv("MNN_ROOT", str(tmp_path))
    assert mnn_sdk.root_of(None) == tmp_path
    assert mnn_sdk.root_of(tmp_path / "other") == tmp_path / "other"


@pytest.mark.usefixtures("built")  # skips where there is no cmake
def test_a_build_that_fails_is_told(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="cannot be built with -DMNN_ROOT="):
        mnn_sdk.built(tmp_path / "build", f"-DMNN_ROOT={tmp_path}")


def test_outputs_refusals_and_times_of_two_runners(built: Path, sdk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table of bench/mnn_sdk.py -->\nold\n<!-- end of the table -->\nafter\n")
    net = irtool.trace(VGG(11, width=0.0625).eval(), torch.zeros(2, 3, 32, 32))
    monkeypatch.setattr(mnn_sdk, "NETS", {"small": lambda _shared: net})
    monkeypatch.setattr(mnn_sdk, "built", lambda _folder, _option: (built / "irtool-run", built / "irtool-run"))
    monkeypatch.setattr(mnn_sdk, "SECONDS", 0.001)
    monkeypatch.setattr(mnn_sdk, "SLICE_MS", 1.0)
    monkeypatch.setenv("ASAN_OPTIONS", "detect_leaks=0:allocator_may_return_null=1")  # MNN keeps a model that it refuses
    options = ["--mnn-root", str(sdk), "--out", str(tmp_path / "found.json"), "--page", str(page)]
    monkeypatch.setattr(sys, "argv", ["mnn_sdk.py", *options])
    assert mnn_sdk.main() == 0
    found = json.loads((tmp_path / "found.json").read_text())
    row = found["nets"]["small"]
    assert found["wheel"]["version"] != ""
    assert found["wheel"]["vnni"] is found["sdk"]["vnni"] is False, "the program holds no kernels"
    assert max(row["errors"].values()) <= 1e-6
    assert row["same_answers"] == dict.fromkeys(row["errors"], 1.0)
    assert row["int8_db"]["wheel"] == row["int8_db"]["sdk"] > 10
    assert row["refused_alike"]
    assert sorted({said[:2] for said in row["refusals"]}) == ["1:", "2:"]
    assert any("half.mnn: is no MNN model, or a damaged one" in said for said in row["refusals"])
    assert page.read_text().startswith("before\n<!-- table of bench/mnn_sdk.py -->\nMade by `python bench/mnn_sdk.py`")
    assert "| small |" in page.read_text()


def test_outputs_that_differ_are_faults() -> None:
    right = {
        "errors": {"wheel float": 1e-9, "wheel int8": 1e-9, "sdk float": 5e-4, "sdk int8": 0.02},
        "int8_db": {"wheel": 30.0, "sdk": 29.6},
    }
    assert mnn_sdk.faults(right) == []
    for cell, error in (("wheel float", 1e-5), ("wheel int8", float("nan")), ("sdk float", 2e-3)):
        (line,) = mnn_sdk.faults(right | {"errors": {**right["errors"], cell: error}})
        assert line.startswith(f"{cell}: differs from Python by ")
    assert mnn_sdk.faults(right | {"int8_db": {"wheel": 30.0, "sdk": 29.0}}) == ["sdk int8: 29.0 dB, the wheel's 30.0"]
