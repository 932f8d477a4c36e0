"""Behaviour of every engine, whichever it is: one list of behaviours, run for each row of the table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import irtool
from irtool.engines import OnnxSession, Session, export_onnx, latency_pairs
from irtool.engines.engine import Engine
from irtool.engines.onnxruntime.calibrate import calibrate
from irtool.engines.onnxruntime.prepare import prepared
from irtool.engines.speed.samples import Sample
from irtool.engines.speed.stopwatch import Stopwatch
from irtool.engines.speed.whole_graph import GraphClock
from irtool.engines.table import ENGINES, OTHERS, by_suffix
from irtool.errors import BackendError, FileError, IrtoolError, OptionError
from irtool.quant import make_recipe, place
from irtool.workflows.equality.chain import engine_link
from irtool.workflows.quantize.sensitivity import sqnr

IMAGES = np.random.default_rng(0).normal(size=(4, 3, 16, 16)).astype(np.float32)


class Residual(nn.Module):
    """Convolutions with and without strides, a residual sum, a depthwise layer, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.thin, self.wide = nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=16), nn.Conv2d(16, 24, 1)
        self.head = nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x).relu()
        y = (y + self.second(y)).relu()
        return self.head(self.wide(self.thin(y)).relu().mean((2, 3)))


@pytest.fixture(params=ENGINES.values(), ids=ENGINES)
def engine(request: pytest.FixtureRequest) -> Engine:
    row: Engine = request.param
    if not row.installed:
        pytest.skip(f"{row.name} is not installed: pip install 'irtool[{row.name}]'")
    return row


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    return Residual().eval()


@pytest.fixture(scope="module")
def source(net: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("net") / "net.onnx"
    export_onnx(net, path, example_inputs=torch.from_numpy(IMAGES[:1]))
    return path


@pytest.fixture
def file(engine: Engine, source: Path, tmp_path: Path) -> Path:
    return engine.written(source, tmp_path)


def test_it_computes_what_onnxruntime_does_at_any_batch(engine: Engine, source: Path, file: Path) -> None:
    session, reference = engine.session(file, 1), OnnxSession(source, 1)
    assert [spec.name for spec in session.inputs] == [spec.name for spec in reference.inputs]
    for images in (IMAGES[:1], IMAGES, IMAGES[:3]):
        (got,), (expected,) = session.run(images), reference.run(images)
        assert got.shape == expected.shape
        assert got.dtype == expected.dtype
        assert np.abs(got - expected).max() <= engine.tolerance * np.abs(expected).max()


def test_what_it_returned_is_not_written_over_by_the_next_run(engine: Engine, file: Path) -> None:
    session = engine.session(file, 1)
    (first,) = session.run(IMAGES[:1])
    kept = first.copy()
    session.run(IMAGES[1:2])
    assert np.array_equal(first, kept)


def test_arrays_that_do_not_fit_are_told(engine: Engine, file: Path) -> None:
    session: Session = engine.session(file, 1)
    for arrays, message in (
        ((), "0 arrays for 1 inputs"),
        ((IMAGES.astype(np.float64),), "cannot be float64"),
        ((IMAGES[:, :2],), "cannot be float32 4x2x16x16"),
    ):
        with pytest.raises(BackendError, match=message):
            session.run(*arrays)


def test_files_that_are_none_are_told(engine: Engine, file: Path, tmp_path: Path) -> None:
    (tmp_path / f"empty{engine.suffix}").touch()
    (tmp_path / f"cut{engine.suffix}").write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    (tmp_path / f"text{engine.suffix}").write_text("a model? no.")
    for name in ("missing", "empty", "cut", "text"):
        for look in (engine.probe, lambda path: engine.session(path, 1)):
            with pytest.raises(IrtoolError) as told:
                look(tmp_path / f"{name}{engine.suffix}")
            assert "\n" not in str(told.value)
            assert "Error" not in str(told.value)  # an exception's name is for those who read the source
            assert told.value.remedy
    for second in engine.files_of(file)[1:]:
        second.rename(tmp_path / "kept")
        with pytest.raises(FileError, match=f"no such file.*{second.suffix}"):
            engine.session(file, 1)
        second.write_bytes((tmp_path / "kept").read_bytes()[:100])
        with pytest.raises(IrtoolError):
            engine.probe(file)
    with pytest.raises(FileError, match=r"[Nn]o such file"):
        engine.probe(tmp_path / f"missing{engine.suffix}")


def test_a_value_from_inside_is_that_value(engine: Engine, source: Path, file: Path) -> None:
    if engine.inside is None:
        pytest.skip(f"{engine.name} shows nothing inside")
    # The first ReLU after the sum: what stands before an activation is often fused away.
    nodes = list(onnx.load(str(source)).graph.node)
    name = next(node.output[0] for node in nodes[[node.op_type for node in nodes].index("Add") :] if node.op_type == "Relu")
    session = engine.inside(file, name)
    (got,) = session.run(IMAGES)
    (expected,) = OnnxSession(source, 1, values=[name]).run(IMAGES)
    assert got.shape == expected.shape == (4, 16, 16, 16)
    assert np.abs(got - expected).max() <= engine.tolerance * np.abs(expected).max()


def test_its_link_of_the_chain_holds_and_breaks_where_the_files_differ(engine: Engine, source: Path, file: Path, tmp_path: Path) -> None:
    inputs = (torch.from_numpy(IMAGES),)
    assert engine_link(engine, source, file, inputs).ok
    model = onnx.load(str(source))
    weight = next(tensor for tensor in model.graph.initializer if "second.weight" in tensor.name)
    weight.CopyFrom(onnx.numpy_helper.from_array(2 * onnx.numpy_helper.to_array(weight), weight.name))
    other = tmp_path / "other"
    other.mkdir()
    onnx.save(model, str(other / "net.onnx"))
    link = engine_link(engine, source, engine.written(other / "net.onnx"), inputs)
    assert not link.ok
    assert link.right == engine.title


def test_an_int8_file_keeps_the_outputs(engine: Engine, source: Path, tmp_path: Path) -> None:
    if engine.integers is None:
        with pytest.raises(OptionError, match="has no int8 files"):
            _ = engine.int8
        return
    model = prepared(onnx.load(str(source)))
    placement = place(model, engine.int8.policy)
    stats = calibrate(model, placement.tensors, [IMAGES], threads=1)
    path = tmp_path / f"int8{engine.suffix}"
    assert engine.int8.write(model, make_recipe(model, placement, stats, engine.int8.scheme), path) == ()
    (got,), (expected,) = engine.session(path, 1).run(IMAGES), OnnxSession(source, 1).run(IMAGES)
    assert sqnr(got, expected) > 20
    account = engine.int8.account(path, model, placement, IMAGES[:1])
    assert account.integer >= 4
    assert isinstance(engine.int8.missing(), str)


def test_a_file_with_integer_weights_alone_is_smaller_and_nearer(engine: Engine, source: Path, file: Path, tmp_path: Path) -> None:
    if engine.integers is None:
        pytest.skip(f"{engine.name} has no int8 files")
    path = tmp_path / f"light{engine.suffix}"
    engine.int8.write_weights(source, path, engine.int8.scheme, ())
    (got,), (expected,) = engine.session(path, 1).run(IMAGES), OnnxSession(source, 1).run(IMAGES)
    assert sqnr(got, expected) > 30
    half = tmp_path / f"half{engine.suffix}"
    engine.int8.write_half(source, half)
    assert sqnr(engine.session(half, 1).run(IMAGES)[0], expected) > 55
    assert path.stat().st_size < half.stat().st_size < file.stat().st_size


def test_its_time_is_told_by_operator(engine: Engine, file: Path) -> None:
    times = engine.times(file, [IMAGES[:1]])
    assert times
    assert list(times.values()) == sorted(times.values(), reverse=True)
    assert all(spent >= 0 for spent in times.values())


def test_graphs_and_single_layers_are_timed_in_it(engine: Engine, net: nn.Module, file: Path, tmp_path: Path) -> None:
    watch = Stopwatch(engine.name, folder=tmp_path / "cache")
    samples = [Sample("Conv", (8, 8), (3, 3), (1, 1), (1, 1), (1, 1), inputs=4, outputs=width) for width in (4, 8)] + [
        Sample("Relu", (4, 8, 8))
    ]
    times = watch.times(samples)
    assert set(times) == set(samples)
    assert all(spent > 0 for spent in times.values())
    with GraphClock(irtool.trace(net, torch.from_numpy(IMAGES[:1])), engine.name) as clock:
        assert clock.alone() > 0
    found = latency_pairs([engine.session(file, 1), engine.session(file, 1)], [IMAGES[:1]], runs=3)
    assert found.latencies[0].runs == 3


def test_the_table_is_one_of_its_names() -> None:
    assert all(name == row.name for name, row in ENGINES.items())
    assert next(iter(ENGINES.values())) not in OTHERS
    own = [row.suffix for row in ENGINES.values() if row.convert is not None]
    assert len(set(own)) == len(own), "files of two engines could not be told apart"
    assert all(by_suffix(suffix) is not None for suffix in own)
    assert by_suffix(".onnx") is None
