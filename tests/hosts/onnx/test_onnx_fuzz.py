"""Malformed ONNX files end in a clear error or in a right graph: no crash, no hang, nothing read outside the folder.

`bench/onnx_fuzz.py` runs thousands of these.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest
from onnx_fuzz_cases import Child, make
from onnx_nets import NETS

CASES = 100
SEED = 20_261_124


@pytest.fixture(scope="module")
def child() -> Iterator[Child]:
    started = Child("spawn")
    yield started
    started.jobs.put(None)
    started.process.join(10)


def test_malformed_files(child: Child, tmp_path: Path) -> None:
    found: Counter[str] = Counter()
    for seed in range(SEED, SEED + CASES):
        name, data = make(seed)
        (tmp_path / "m.onnx").write_bytes(data)
        outcome = child.run(str(tmp_path / "m.onnx"))
        assert not outcome.startswith("BUG"), f"{seed} {name}: {outcome}"
        found[outcome.partition(":")[0]] += 1
    assert found["error"] > CASES / 3
    assert found["pruned"] > 5


@pytest.mark.parametrize("location", ["../secret.bin", "a/../../secret.bin", "link.bin", "deep/link/secret.bin", "{parent}/secret.bin"])
def test_weights_outside_the_folder_are_not_read(location: str, child: Child, tmp_path: Path) -> None:
    """Each place holds enough bytes, so that only the refusal keeps them from being read."""
    folder = tmp_path / "model"
    (folder / "a").mkdir(parents=True)
    (folder / "deep").mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(100_000))
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    (folder / "deep" / "link").symlink_to(tmp_path, target_is_directory=True)
    model = NETS["residual"]()
    for tensor in model.graph.initializer:
        size = len(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", location.format(parent=tmp_path)), ("length", str(size))):
            tensor.external_data.add(key=key, value=value)
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    assert child.run(str(folder / "m.onnx")) == "error: FileError"
