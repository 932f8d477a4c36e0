"""Ranges, scales, placement and int8 files. The oracles are numpy on the raw data, onnxruntime and MNN."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from quant_nets import Mixed, exported, images, sqnr

import irtool
import irtool.train
from irtool.engines import MnnSession, OnnxSession
from irtool.engines.mnn.int8 import export_mnn_int8, matched
from irtool.engines.mnn.int8_policy import MNN_POLICY
from irtool.engines.mnn.layers import mnn_operators
from irtool.engines.mnn.quantizer import mnn_own_int8
from irtool.engines.onnxruntime.calibrate import calibrate
from irtool.engines.onnxruntime.prepare import prepared
from irtool.engines.onnxruntime.qdq import to_qdq
from irtool.engines.onnxruntime.stored_weights import weights_to_integers
from irtool.errors import DataError, ExportError, OptionError
from irtool.quant import Scheme, Statistics, affine, channel_scales, grid, make_recipe, observe, place
from irtool.quant.affine import GRIDS
from irtool.quant.observers import METHODS
from irtool.quant.placement import PLAIN, Int8Policy, layers_of
from irtool.quant.scales import weights_recipe
from irtool.quant.weights import alternated, integers_of, largest

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def seen(*batches: np.ndarray) -> Statistics:
    stats = Statistics()
    for batch in batches:
        stats.update(batch)
    return stats


@settings(max_examples=30, deadline=None)
@given(low=st.floats(-100, 50), width=st.floats(1e-3, 100), key=st.sampled_from(sorted(GRIDS)))
def test_integers_are_those_of_onnxruntime(low: float, width: float, key: tuple[str, bool]) -> None:
    params = affine(low, low + width, GRIDS[key])
    x = np.random.default_rng(0).uniform(low, low + width, 200).astype(np.float32)
    kind = {"uint8": TensorProto.UINT8, "int8": TensorProto.INT8}[key[0]]
    constants = [
        helper.make_tensor("s", TensorProto.FLOAT, [], [params.scale]),
        helper.make_tensor("z", kind, [], [params.zero_point]),
    ]
    graph = helper.make_graph(
        [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]), helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"])],
        "steps",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [200])],
        [helper.make_tensor_value_info("q", kind, [200]), helper.make_tensor_value_info("y", TensorProto.FLOAT, [200])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    q, y = ort.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    assert np.abs(params.quantise(x).astype(int) - q.astype(int)).max() <= 1  # a tie may round either way in float32
    assert np.abs(params.rounded(x) - y).max() <= params.scale * 1.01
    assert params.rounded(np.zeros(1))[0] == 0.0
    assert np.abs(params.rounded(x) - x).max() <= params.scale * 0.51 + 1e-6


def test_statistics_are_those_of_all_batches_together() -> None:
    generator = np.random.default_rng(1)
    batches = [generator.normal(0, 10.0**k, (4, 3, 5, 5)).astype(np.float32) for k in (-2, 0, 1)]
    stats, whole = seen(*batches), np.concatenate(batches)
    assert (stats.low, stats.high, stats.total) == (whole.min(), whole.max(), whole.size)
    assert stats.means is not None
    np.testing.assert_allclose(stats.means, whole.mean((0, 2, 3)), rtol=1e-5)
    assert stats.counts.sum() == whole.size
    step = stats.centers[1] - stats.centers[0]
    assert abs((stats.counts * stats.centers).sum() / whole.size - whole.mean()) <= step
    assert abs(stats.counts[stats.centers < 0].sum() - (whole < 0).sum()) <= 0.01 * whole.size


def test_memory_does_not_grow_with_the_images() -> None:
    stats = seen(*(np.full((2, 3), float(k), np.float32) for k in range(1, 40)))
    assert stats.counts.nbytes == seen(np.ones((2, 3), np.float32)).counts.nbytes
    assert stats.radius == 64.0


def test_the_moving_average_forgets_an_outlier() -> None:
    batches = [np.array([[-1.0, 1.0]], np.float32)] * 20
    outlier = np.array([[-1.0, 100.0]], np.float32)
    low, high = METHODS["moving_average"](seen(*batches[:10], outlier, *batches), grid("int8"))
    assert low == pytest.approx(-1)
    assert 1 < high < 5


def test_percentile_is_that_of_the_data() -> None:
    x = np.random.default_rng(2).normal(0, 1, (100, 1000)).astype(np.float32)
    low, high = METHODS["percentile"](seen(x), grid("int8"))
    assert [low, high] == pytest.approx(np.percentile(x, [0.005, 99.995]).tolist(), abs=2e-3)


@pytest.mark.parametrize("key", sorted(GRIDS))
@pytest.mark.parametrize("rectified", [False, True])
def test_mse_is_no_worse_than_any_other_method(key: tuple[str, bool], rectified: bool) -> None:
    x = np.random.default_rng(3).laplace(0, 1, (64, 500)).astype(np.float32)
    x[0, 0] = 60.0
    x = np.maximum(x, 0) if rectified else x
    stats = seen(x)
    errors = {name: ((observe(stats, name, GRIDS[key]).rounded(x) - x) ** 2).mean() for name in METHODS}
    assert errors["mse"] <= 1.02 * min(errors.values())
    assert errors["mse"] < errors["minmax"]


def test_kl_cuts_an_outlier_off() -> None:
    x = np.random.default_rng(4).normal(0, 1, (64, 500)).astype(np.float32)
    x[0, 0] = 100.0
    low, high = METHODS["kl"](seen(x), grid("int8", True))
    assert 2 < high < 50
    assert low >= x.min()


def test_bad_calibration_says_what_to_do() -> None:
    with pytest.raises(DataError, match="Check the model on the calibration images"):
        seen(np.array([1.0, np.nan], np.float32))
    with pytest.raises(DataError, match="Calibrate with at least one image"):
        observe(Statistics(), "mse", grid("int8"))
    with pytest.raises(OptionError, match="Choose one of minmax"):
        observe(seen(np.ones(1, np.float32)), "best", grid("int8"))
    with pytest.raises(OptionError, match="Choose uint8 or int8"):
        grid("int4")


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), bits=st.integers(3, 8))
def test_alternation_never_loses_to_the_largest_magnitude(seed: int, bits: int) -> None:
    rows = np.random.default_rng(seed).standard_t(3, (6, 40))
    steps = 2 ** (bits - 1) - 1

    def error(scales: np.ndarray) -> np.ndarray:
        return ((rows - integers_of(rows, scales, steps) * scales[:, None]) ** 2).sum(axis=1)

    assert (error(alternated(rows, steps)) <= error(largest(rows, steps)) + 1e-12).all()


def test_weight_scales_of_zeros_and_of_bad_options() -> None:
    assert channel_scales(np.zeros((2, 3)), "admm").tolist() == [1.0, 1.0]
    with pytest.raises(OptionError, match="Choose 2 to 8"):
        channel_scales(np.ones((1, 2)), bits=9)
    with pytest.raises(OptionError, match="Choose one of max, admm"):
        channel_scales(np.ones((1, 2)), "median")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[onnx.ModelProto, Path]:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("mixed")
    return prepared(exported(Mixed(), folder)), folder


def _run(model: onnx.ModelProto, x: np.ndarray, optimise: bool = True) -> np.ndarray:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL if optimise else ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.graph_optimization_level = level
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0])


def _calibrated(model: onnx.ModelProto, scheme: Scheme, policy: Int8Policy = PLAIN) -> irtool.quant.scales.Recipe:
    placement = place(model, policy)
    batches = np.array_split(images(64), 8)
    return make_recipe(model, placement, calibrate(model, placement.tensors, batches, threads=1), scheme)


def test_integers_reach_everything_between_layers(mixed: tuple[onnx.ModelProto, Path]) -> None:
    model, _ = mixed
    placement = place(model)
    assert [layer.op for layer in placement.layers] == ["Conv"] * 5 + ["Gemm"] * 2
    assert placement.floating == {}
    alone = place(model, floating=[layer.name for layer in placement.layers[1:]], joins=False)
    assert [layer.name for layer in alone.layers] == [placement.layers[0].name]
    assert set(alone.tensors) == {placement.layers[0].input, placement.layers[0].output}


@pytest.mark.parametrize(
    "scheme",
    [
        Scheme(weight_bits=7),
        Scheme("int8"),
        Scheme("int8", symmetric=True, weight_bits=7),
        Scheme(weight_bits=7, weights="admm", method="percentile", correct_bias=False),
    ],
    ids=str,
)
def test_a_qdq_file_computes_in_integers_what_it_says(mixed: tuple[onnx.ModelProto, Path], scheme: Scheme) -> None:
    model, _ = mixed
    quantised = to_qdq(model, _calibrated(model, scheme))
    onnx.checker.check_model(quantised, full_check=True)
    kinds = [tensor.data_type for tensor in quantised.graph.initializer if len(tensor.dims) >= 2]
    assert kinds
    assert set(kinds) == {TensorProto.INT8}
    x = images(32, seed=9)
    expected, simulated, integer = _run(model, x), _run(quantised, x, optimise=False), _run(quantised, x)
    assert sqnr(simulated, expected) > 25
    assert sqnr(integer, simulated) > 30  # the engine's own rounding between integer operators


def test_a_corrected_bias_takes_the_mean_error_out(mixed: tuple[onnx.ModelProto, Path]) -> None:
    model, _ = mixed
    x = images(64)
    errors = {}
    for corrected in (False, True):
        recipe = _calibrated(model, Scheme("int8", weight_bits=4, correct_bias=corrected))
        errors[corrected] = np.abs((_run(to_qdq(model, recipe), x) - _run(model, x)).mean(0)).mean()
    assert errors[True] < 0.7 * errors[False]


def test_an_old_operator_set_is_refused() -> None:
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "old", [], [])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 12)])
    with pytest.raises(ExportError, match="Convert the model to 13 or newer"):
        to_qdq(model, make_recipe(model, place(model), {}, Scheme()))


def test_calibration_needs_images(mixed: tuple[onnx.ModelProto, Path]) -> None:
    with pytest.raises(DataError, match="Give at least one image"):
        calibrate(mixed[0], ["input"], [])


def test_mnn_takes_our_scales_for_every_layer_but_the_last(mixed: tuple[onnx.ModelProto, Path], tmp_path: Path) -> None:
    model, folder = mixed
    recipe = _calibrated(model, Scheme("int8", symmetric=True), MNN_POLICY)
    done = export_mnn_int8(model, recipe, tmp_path / "int8.mnn")
    assert done.layers == tuple(layer.name for layer in layers_of(model)[:-1])  # the last one computes in float
    assert done.missed == ()
    x = images(32, seed=9)
    session = MnnSession(tmp_path / "int8.mnn", 1)
    assert sqnr(session.run(x)[0], OnnxSession(folder / "float.onnx", 1).run(x)[0]) > 22
    assert sqnr(session.run(x)[0], _run(to_qdq(model, recipe), x, optimise=False)) > 22


def test_mnn_is_not_given_zero_points(mixed: tuple[onnx.ModelProto, Path], tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="symmetric=True"):
        export_mnn_int8(mixed[0], _calibrated(mixed[0], Scheme("int8"), MNN_POLICY), tmp_path / "int8.mnn")


def test_a_product_has_another_name_in_mnn(mixed: tuple[onnx.ModelProto, Path]) -> None:
    model, folder = mixed
    names = matched(layers_of(model), mnn_operators(folder / "float.onnx"))
    assert len(names) == len(layers_of(model))
    assert names["output"] == ("output__matmul_converted",)
    assert names["/hidden/Gemm_output_0"][0] not in {name for node in model.graph.node for name in node.output}


@pytest.mark.skipif(not DATA.is_dir(), reason="the published checkpoints and images are not beside this checkout")
def test_the_published_net_keeps_its_accuracy_in_both_engines(tmp_path: Path) -> None:
    net = irtool.models.PreResNet(38)
    net.load_state_dict(torch.load(DATA / "preresnet38" / "sparse.pth", weights_only=True)["state_dict"])
    graph = irtool.trace(net.eval(), torch.zeros(2, 3, 32, 32))
    pruned = irtool.fold_batchnorm(irtool.prune(graph, irtool.plan(graph, "bn_scale", 0.5, "global", "select"), "drop"))
    irtool.export_onnx(pruned, tmp_path / "float.onnx")
    data = irtool.train.load_data(DATA / "cifar10-jpeg.zip", limit=300)
    model = onnx.load(str(tmp_path / "float.onnx"))
    tensors = (*place(model, MNN_POLICY).tensors, *place(model).tensors)
    stats = calibrate(model, tensors, data.sample(96).numpy().reshape(-1, 32, 3, 32, 32), threads=1)
    x, labels = data.preprocessing.normalise(data.test.images).numpy(), data.test.labels.numpy()

    def accuracy(session: OnnxSession | MnnSession) -> float:
        return float((session.run(x)[0].argmax(1) == labels).mean())

    expected = accuracy(OnnxSession(tmp_path / "float.onnx", 1))
    onnx.save(to_qdq(model, make_recipe(model, place(model), stats, Scheme(weight_bits=7))), str(tmp_path / "int8.onnx"))
    export_mnn_int8(model, make_recipe(model, place(model, MNN_POLICY), stats, Scheme("int8", True)), tmp_path / "int8.mnn")
    # 300 images: a point is 3 of them. All 10,000 are scored by bench/int8_schemes.py.
    assert accuracy(OnnxSession(tmp_path / "int8.onnx", 1)) >= expected - 0.01
    assert accuracy(MnnSession(tmp_path / "int8.mnn", 1)) >= expected - 0.01
    assert (tmp_path / "int8.onnx").stat().st_size <= 0.37 * (tmp_path / "float.onnx").stat().st_size


def test_weights_alone_make_a_quarter_of_the_bytes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = prepared(exported(irtool.models.VGG(11, width=0.25), tmp_path, (2, 3, 32, 32)))
    light = weights_to_integers(model, weights_recipe(model))
    onnx.checker.check_model(light, full_check=True)
    assert light.ByteSize() < 0.28 * model.ByteSize()
    x = images(8, (3, 32, 32))
    assert sqnr(_run(light, x), _run(model, x)) > 30


def test_the_quantiser_of_mnn_writes_its_file_and_no_other(tmp_path: Path) -> None:
    exported(irtool.models.VGG(11, width=0.0625), tmp_path, (2, 3, 32, 32))
    irtool.export_mnn(tmp_path / "float.onnx", tmp_path / "float.mnn")
    pixels = np.random.default_rng(0).integers(0, 256, (8, 3, 32, 32), np.uint8)
    size = mnn_own_int8(tmp_path / "float.mnn", tmp_path / "own" / "int8.mnn", pixels, (0.5,) * 3, (0.25,) * 3)
    assert [(path.name, path.stat().st_size) for path in (tmp_path / "own").iterdir()] == [("int8.mnn", size)]
    assert MnnSession(tmp_path / "own" / "int8.mnn", 1).run(images(2, (3, 32, 32)))[0].shape == (2, 10)
    with pytest.raises(OptionError, match="Choose one of KL"):
        mnn_own_int8(tmp_path / "float.mnn", tmp_path / "x.mnn", pixels, (0.5,) * 3, (0.25,) * 3, method="best")
