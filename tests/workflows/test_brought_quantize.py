"""`irtool quantize` for models that are no classifiers of (N, C, H, W): detectors, segmenters, other layouts, inputs and batches."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_nets import Net
from PIL import Image

from irtool.errors import CheckError
from irtool.workflows.loading.feeds import Feed, agreement

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder, rng = tmp_path / "images", np.random.default_rng(0)
    folder.mkdir()
    for number in range(12):
        pixels = rng.normal(128, 30, (1, 1, 3)) + rng.normal(0, 40, (16, 16, 3))
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / f"{number:02}.png")
    return folder


def trunk(n: Net, x: str) -> str:
    return n.cbr(n.cbr(x, 3, 12), 12, 12)


def segmenter(batch: int | str = "N") -> onnx.ModelProto:
    n = Net(17, (batch, 3, 16, 16))
    return n.model(n.conv(trunk(n, "x"), 12, 5, 1), ranks=[4])


def detector() -> onnx.ModelProto:
    """Boxes and scores for each position."""
    n = Net(17, ("N", 3, 16, 16))
    x = trunk(n, "x")
    boxes, scores = (n.op("Transpose", n.op("Reshape", n.conv(x, 12, width), n.const([0, width, 256])), perm=[0, 2, 1]) for width in (4, 3))
    return n.model(boxes, n.op("Sigmoid", scores), ranks=[3, 3])


def channels_last() -> onnx.ModelProto:
    n = Net(17, ("N", 16, 16, 3))
    return n.model(n.head(trunk(n, n.op("Transpose", "x", perm=[0, 3, 1, 2])), 12))


def two_inputs() -> onnx.ModelProto:
    """A factor for each image comes first."""
    n = Net(17, ("N", 3, 16, 16))
    y = n.op("Mul", n.conv(trunk(n, "x"), 12, 5, 1), "factor")
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *rest]) for name, *rest in (("factor", 1, 1, 1), ("x", 3, 16, 16))
    ]
    weights = [numpy_helper.from_array(array, name) for name, array in n.weights.items()]
    graph = helper.make_graph(n.nodes, "net", inputs, [helper.make_tensor_value_info(y, TensorProto.FLOAT, [None] * 4)], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def padded_by_its_sizes() -> onnx.ModelProto:
    """Padded along one axis to a multiple of 8: onnxruntime misreads the amounts around integers where they are those of some axes."""
    n = Net(18, ("N", 3, 16, 16))
    x = trunk(n, n.op("Slice", "x", n.const([0]), n.const([13]), n.const([2])))
    height = n.op("Gather", n.op("Shape", x), n.const([2]))
    missing = n.op("Mod", n.op("Sub", n.const([8]), n.op("Mod", height, n.const([8]))), n.const([8]))
    x = n.op("Pad", x, n.op("Concat", n.const([0]), missing, axis=0), "", n.const([2]))
    return n.model(n.conv(x, 12, 5, 1), ranks=[4])


def resized_to_a_skip() -> onnx.ModelProto:
    """To the sizes of another value, which are computed; and some axes alone to sizes that are stated."""
    n = Net(18, ("N", 3, 16, 16))
    x = n.op("Resize", trunk(n, "x"), "", "", n.const([16, 16]), axes=[2, 3], mode="linear")
    sizes = n.op("Concat", *(n.op("Slice", n.op("Shape", y), n.const([a]), n.const([a + 2])) for y, a in ((x, 0), ("x", 2))), axis=0)
    small = n.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    return n.model(n.conv(n.op("Resize", n.conv(small, 12, 12), "", "", sizes, mode="linear"), 12, 5, 1), ranks=[4])


def half_floats() -> onnx.ModelProto:
    model = segmenter()
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    return model


NETS: dict[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "a segmenter": (segmenter, "agreement of outputs"),
    "a fixed batch": (lambda: segmenter(2), "agreement of outputs"),
    "a detector": (detector, "agreement of outputs"),
    "channels last": (channels_last, "agreement with float"),
    "two inputs": (two_inputs, "agreement of outputs"),
    "padded by its sizes": (padded_by_its_sizes, "agreement of outputs"),
    "resized to a skip": (resized_to_a_skip, "agreement of outputs"),
    "half floats": (half_floats, "agreement of outputs"),
}


@pytest.mark.parametrize("name", NETS)
def test_any_model_is_quantised(name: str, images: Path, tmp_path: Path, cli: Run) -> None:
    make, measure = NETS[name]
    onnx.save(make(), tmp_path / "net.onnx")
    code, out, err = cli("quantize", tmp_path / "net.onnx", "--calib", images, "--out", tmp_path / "int8", "--images", 8, "--runs", 1)
    assert code == 0, err
    assert f"{measure} (4 images)" in out
    report = json.loads((tmp_path / "int8" / "report.json").read_text())
    assert report["measure"] == measure
    assert 1 - report["int8"]["accuracy"] <= 0.003
    sessions = [ort.InferenceSession(str(tmp_path / "int8" / f"{kind}.onnx")) for kind in ("float", "int8")]
    feed = {
        spec.name: np.random.default_rng(0).normal(size=[s if isinstance(s, int) else 2 for s in spec.shape]).astype(np.float32)
        for spec in sessions[0].get_inputs()
    }
    expected, got = (session.run(None, feed) for session in sessions)
    for a, b in zip(got, expected, strict=True):
        assert a.shape == b.shape
        assert not np.array_equal(a, b)  # it is rounded
        assert float(np.abs(a - b).max()) <= 0.1 * float(np.abs(b).max())


def suppressed(name: str) -> onnx.ModelProto:
    """A detector as exporters end it: boxes and scores, and what is kept of them."""
    n = Net(17, (1, 3, 16, 16))
    y = n.op("Reshape", n.conv(trunk(n, "x"), 12, 7, 1), n.const([1, 7, 256]))
    boxes, scores = n.op("Split", y, n.const([4, 3]), outputs=2, axis=1)
    boxes, scores = n.op("Transpose", boxes, perm=[0, 2, 1]), n.op("Sigmoid", scores)
    if name == "NonZero":
        places = n.op("Transpose", n.op("NonZero", n.op("Greater", scores, n.const(0.5, np.float32))), perm=[1, 0])
        return n.model(n.op("GatherND", scores, places), ranks=[1])
    kept = n.op("NonMaxSuppression", boxes, scores, n.const([50]), n.const([0.4], np.float32), n.const([0.2], np.float32))
    return n.model(n.op("GatherND", boxes, n.op("Gather", kept, n.const([0, 2]), axis=1)), ranks=[2])


@pytest.mark.parametrize("name", ["NonMaxSuppression", "NonZero"])
def test_a_model_that_ends_in_a_choice_is_judged_by_what_it_chooses_from(name: str, images: Path, tmp_path: Path, cli: Run) -> None:
    """Of the entries that are kept agreement says nothing: one more moves all behind it. The whole file is written."""
    onnx.save(suppressed(name), tmp_path / "net.onnx")
    code, out, err = cli("quantize", tmp_path / "net.onnx", "--calib", images, "--out", tmp_path / "int8", "--images", 8, "--runs", 1)
    assert code == 0, err
    assert "how many entries these have is data" in out
    assert "3 of 3 layers in int8" in out
    report = json.loads((tmp_path / "int8" / "report.json").read_text())
    assert 0 < 1 - report["int8"]["accuracy"] <= 0.003
    session = ort.InferenceSession(str(tmp_path / "int8" / "int8.onnx"))
    (found,) = session.run(None, {"x": np.random.default_rng(0).normal(size=(1, 3, 16, 16)).astype(np.float32)})
    assert found.shape[1:] == ((4,) if name == "NonMaxSuppression" else ())


def test_an_engine_that_shows_nothing_before_the_choice_is_refused_with_what_helps(images: Path, tmp_path: Path, cli: Run) -> None:
    onnx.save(suppressed("NonMaxSuppression"), tmp_path / "net.onnx")
    code, _, err = cli(
        "quantize", tmp_path / "net.onnx", "--calib", images, "--out", tmp_path / "int8", "--images", 8, "--runs", 1, "--engine", "mnn"
    )
    assert code == 1
    assert "and MNN shows nothing before that choice. Use --engine onnxruntime, or quantise the part of the model before it." in err
    assert not (tmp_path / "int8").exists()


def test_where_mnn_does_not_profile_what_it_runs_the_file_is_written(images: Path, tmp_path: Path, cli: Run) -> None:
    """Its profile has no control flow; an operator that it lacks is taken apart for integers, too."""
    n = Net(18, ("N", 3, 16, 16))
    x = n.op("Mish", trunk(n, "x"))
    batch = n.op("Gather", n.op("Shape", x), n.const([0]))
    same = n.op("Div", n.op("Mul", batch, batch), batch)  # products of whole numbers, which have no scale
    x = n.op("Reshape", x, n.op("Concat", same, n.const([12, 256]), axis=0))
    x = n.op("Transpose", x, perm=[2, 0, 1])
    given = (n.weight(1, 24, 12), n.weight(1, 24, 8), n.weight(1, 48))
    _, last = n.op("GRU", x, *given, outputs=2, hidden_size=8, linear_before_reset=1)
    onnx.save(n.model(n.op("Gemm", n.op("Squeeze", last, n.const([0])), n.weight(8, 4))), tmp_path / "net.onnx")
    command = ("quantize", tmp_path / "net.onnx", "--calib", images, "--images", 8, "--runs", 1, "--max-drop", 100)
    code, _, err = cli(*command, "--engine", "mnn", "--out", tmp_path / "int8")
    assert code == 0, err
    assert "where integers are is told as planned" in json.loads((tmp_path / "int8" / "report.json").read_text())["notes"][-1]


def test_a_value_takes_the_place_of_an_input(images: Path, tmp_path: Path, cli: Run) -> None:
    onnx.save(two_inputs(), tmp_path / "net.onnx")
    command = ("quantize", tmp_path / "net.onnx", "--calib", images, "--images", 8, "--runs", 1, "--engine", "mnn")
    code, _, err = cli(*command, "--out", tmp_path / "int8")
    assert code
    assert "several inputs. Fix the others with --set NAME=VALUE" in err
    code, _, err = cli(*command, "--set", "factor=2", "--out", tmp_path / "int8")
    assert code == 0, err


def signals() -> onnx.ModelProto:
    n = Net(17, ("N", 2, 96))
    x = n.op("Relu", n.op("Conv", "x", n.weight(12, 2, 8), n.weight(12), strides=[4]))
    x = n.op("ReduceMean", n.op("Relu", n.op("Conv", x, n.weight(12, 12, 3), n.weight(12))), axes=[2], keepdims=0)
    return n.model(n.op("Gemm", x, n.weight(12, 4)))


def of_type(kind: int, shape: list[int | str], make: Callable[[Net], str]) -> onnx.ModelProto:
    """A classifier of one input of another type."""
    n = Net(17, shape)
    y = n.head(trunk(n, make(n)), 12)
    weights = [numpy_helper.from_array(array, name) for name, array in n.weights.items()]
    x, out = helper.make_tensor_value_info("x", kind, shape), helper.make_tensor_value_info(y, TensorProto.FLOAT, ["N", 4])
    return helper.make_model(
        helper.make_graph(n.nodes, "net", [x], [out], weights), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )


def words(n: Net) -> str:
    """Numbers of words as columns of an image."""
    rows = n.op("Transpose", n.op("Gather", n.weight(50, 24), "x", axis=0), perm=[0, 2, 1])
    return n.op("Reshape", rows, n.const([0, 3, 8, -1]))


STORED: dict[str, tuple[Callable[[], onnx.ModelProto], np.ndarray]] = {
    "signals": (signals, np.random.default_rng(0).normal(size=(16, 2, 96)).astype(np.float32)),
    "numbers of words": (lambda: of_type(TensorProto.INT64, ["N", "L"], words), np.random.default_rng(0).integers(0, 50, (16, 9))),
}


@pytest.mark.parametrize("engine", ["onnxruntime", "mnn"])
@pytest.mark.parametrize("name", STORED)
def test_inputs_that_are_no_pictures_are_stored(name: str, engine: str, tmp_path: Path, cli: Run) -> None:
    make, rows = STORED[name]
    onnx.save(make(), tmp_path / "net.onnx")
    np.save(tmp_path / "rows.npy", rows)
    command = ("quantize", tmp_path / "net.onnx", "--calib", tmp_path / "rows.npy", "--images", 12, "--runs", 1, "--max-drop", 100)
    code, _, err = cli(*command, "--engine", engine, "--out", tmp_path / "int8")
    assert code == 0, err
    report = json.loads((tmp_path / "int8" / "report.json").read_text())
    assert report["preprocessing"] == {"stored": list(rows.shape[1:])}
    float_file = onnx.load(tmp_path / "int8" / "float.onnx") if engine == "onnxruntime" else None
    assert float_file is None or not float_file.metadata_props or float_file.metadata_props[0].key != "irtool.preprocessing"


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (np.zeros((1, 2, 96), np.float32), "two inputs or more"),
        (np.full((4, 2, 96), np.nan, np.float32), "not finite"),
        (np.array([[{}], [{}]], object), "no array of numbers"),
        (np.zeros((4, 3, 96), np.float32), "no input takes arrays of 3x96: x Nx2x96"),
    ],
)
def test_stored_inputs_that_can_never_work_are_refused(rows: np.ndarray, told: str, tmp_path: Path, cli: Run) -> None:
    onnx.save(signals(), tmp_path / "net.onnx")
    np.save(tmp_path / "rows.npy", rows)
    code, _, err = cli("quantize", tmp_path / "net.onnx", "--calib", tmp_path / "rows.npy", "--out", tmp_path / "int8")
    assert code
    assert told in err
    assert not (tmp_path / "int8").exists()


def test_models_that_take_no_pictures_are_told_of_stored_inputs(images: Path, tmp_path: Path, cli: Run) -> None:
    n = Net(17, ("N", 4, 16, 16))
    onnx.save(n.model(n.head(n.cbr("x", 4, 8), 8)), tmp_path / "four.onnx")
    onnx.save(signals(), tmp_path / "signals.onnx")
    for name, told in (
        ("four", "takes images of 4 channels, and pictures have 3"),
        ("signals", "no input takes images of 3x16x16: 1x2x96"),
    ):
        code, _, err = cli("quantize", tmp_path / f"{name}.onnx", "--calib", images, "--out", tmp_path / "int8")
        assert code
        assert told in err
        assert "--calib FILE.npy" in err


def test_a_model_that_takes_bytes_is_given_pixels(images: Path, tmp_path: Path, cli: Run) -> None:
    def prepared(n: Net) -> str:
        x = n.op("Transpose", n.op("Cast", "x", to=TensorProto.FLOAT), perm=[0, 3, 1, 2])
        return n.op("Div", n.op("Sub", x, n.const(128, np.float32)), n.const(40, np.float32))

    onnx.save(of_type(TensorProto.UINT8, ["N", 16, 16, 3], prepared), tmp_path / "net.onnx")
    command = ("quantize", tmp_path / "net.onnx", "--calib", images, "--images", 8, "--runs", 1, "--out", tmp_path / "int8")
    code, _, err = cli(*command, "--mean", "0.5,0.5,0.5")
    assert code
    assert "takes pixels from 0 to 255" in err
    code, _, err = cli(*command)
    assert code == 0, err
    pixels = np.stack([np.asarray(Image.open(file)) for file in sorted(images.iterdir())])
    exact, int8 = (ort.InferenceSession(str(tmp_path / "int8" / f"{kind}.onnx")).run(None, {"x": pixels})[0] for kind in ("float", "int8"))
    assert float(np.abs(int8 - exact).max()) <= 0.05 * float(np.abs(exact).max())


def test_the_bound_counts_the_noise_in_the_outputs() -> None:
    x = np.array([[3.0, 4.0]])
    assert agreement([x], [x]) == 1
    assert agreement([np.array([[3.0, 4.5]])], [x]) == pytest.approx(1 - 0.25 / 25)
    assert agreement([x, np.array([1, 2, 3, 4])], [x, np.array([1, 2, 3, 5])]) == 0.75
    assert agreement([x, np.zeros((3, 7))], [x, np.zeros((2, 7))]) == 1  # another number of detections
    with pytest.raises(CheckError, match="before its NonMaxSuppression"):
        agreement([np.zeros((3, 7))], [np.zeros((2, 7))])


def test_inputs_are_fed_in_the_models_order() -> None:
    images = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    scale, size = np.ones((1, 1), np.float32), np.array([7])
    pair = Feed(0, twins=(1,))(images)
    np.testing.assert_array_equal(pair[0], images)
    np.testing.assert_array_equal(pair[1], images[::-1])  # another image than the first
    first, x, last = Feed(1, True, {0: scale, 2: size}, frozenset({0}))(images)
    assert first.shape == (2, 1)
    assert last is size
    np.testing.assert_array_equal(x, images.transpose(0, 2, 3, 1))
