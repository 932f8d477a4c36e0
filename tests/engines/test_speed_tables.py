"""Times of single layers: the models that are timed, what is fitted to their times, and the file in which times are kept."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torchvision
from torch import nn

import irtool
from irtool.analysis.width_cost import width_cost
from irtool.engines import OnnxSession
from irtool.engines.speed import stopwatch
from irtool.engines.speed.layer_times import layer_terms, sample_of
from irtool.engines.speed.samples import ELEMENTWISE, Sample, model_of
from irtool.engines.speed.stopwatch import Stopwatch
from irtool.errors import OptionError

CONV = Sample("Conv", (9, 9), (3, 3), (2, 2), (1, 1), (1, 1), 1, 8, 12)


@pytest.mark.parametrize(
    "sample",
    [
        CONV,
        Sample("Conv", (9, 9), (3, 3), (1, 1), (1, 1), (2, 2), 0, 8, 8),
        Sample("Conv", (9,), (3,), (1,), (1,), (1,), 2, 8, 4),
        Sample("ConvTranspose", (5, 5), (2, 2), (2, 2), (0, 0), (1, 1), 1, 6, 4),
        Sample("Gemm", (), inputs=20, outputs=10),
        *(Sample(op, (4, 6, 6)) for op in ELEMENTWISE),
    ],
    ids=lambda sample: sample.key,
)
def test_samples_are_models_that_run(sample: Sample, tmp_path: Path) -> None:
    model = model_of([sample])
    onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
    onnx.save(model, str(tmp_path / "sample.onnx"))
    (y,) = OnnxSession(tmp_path / "sample.onnx", 1).run(np.ones(sample.shape, np.float32))
    assert np.isfinite(y).all()


def test_mnn_times_samples_of_one_file(tmp_path: Path) -> None:
    samples = [CONV, Sample("Add", (4, 6, 6))]
    times = Stopwatch("mnn", folder=tmp_path).times(samples)
    assert list(times) == samples
    assert all(found >= 0 for found in times.values())


def test_times_are_kept_for_engine_version_threads_and_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Stopwatch("onnxruntime", folder=tmp_path)
    found = first.times([CONV])
    plain = json.loads(first.file.read_text())
    assert plain["made_on"] == first.made_on
    assert set(first.made_on) == {"engine", "version", "threads", "processor"}
    assert plain["times"] == {CONV.key: found[CONV]}
    monkeypatch.setattr(stopwatch, "_all_timed", lambda engine, samples, threads: pytest.fail("timed again"))
    assert Stopwatch("onnxruntime", folder=tmp_path).times([CONV]) == found
    assert Stopwatch("onnxruntime", 2, folder=tmp_path).file != first.file


@pytest.mark.parametrize(
    "damage",
    [
        lambda plain: "{",
        lambda plain: "[]",
        lambda plain: json.dumps({**plain, "format": 99}),
        lambda plain: json.dumps({**plain, "made_on": {**plain["made_on"], "version": "0"}}),
        lambda plain: json.dumps({**plain, "times": {CONV.key: -1.0}}),
        lambda plain: json.dumps({**plain, "times": {CONV.key: "1.0"}}),
        lambda plain: json.dumps({**plain, "times": {CONV.key: 1e300}}),
        lambda plain: json.dumps({**plain, "times": {CONV.key: float("nan")}}),
        lambda plain: json.dumps({**plain, "times": [1.0]}),
    ],
)
def test_a_file_that_cannot_be_believed_is_measured_anew(damage, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    watch = Stopwatch("onnxruntime", folder=tmp_path)
    watch.times([CONV])
    watch.file.write_text(damage(json.loads(watch.file.read_text())))
    assert Stopwatch("onnxruntime", folder=tmp_path)._times == {}


def test_nothing_is_kept_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert list(Stopwatch("onnxruntime", folder=tmp_path / "file" / "below").times([CONV])) == [CONV]


def test_other_engines_are_refused() -> None:
    with pytest.raises(OptionError, match="Choose onnxruntime or mnn"):
        Stopwatch("tensorrt")


class Linear(Stopwatch):
    """A machine on which a layer takes 2 us, 3 ns an output channel, and 5 ps a multiply; an element 1 ns."""

    def times(self, samples):  # type: ignore[no-untyped-def]
        return {sample: self.of(sample) for sample in samples}

    @staticmethod
    def of(sample: Sample) -> float:
        if sample.op in ELEMENTWISE:
            return prod(sample.size) * 1e-6
        inner = 1 if sample.groups == 0 else sample.inputs // sample.groups
        places = prod(size // step for size, step in zip(sample.size, sample.stride, strict=True))
        return 2e-3 + 3e-6 * sample.outputs + 5e-9 * places * prod(sample.kernel) * inner * sample.outputs


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "resnext50_32x4d"])
def test_the_terms_are_the_times_and_follow_the_widths(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    graph = irtool.trace(torchvision.models.get_model(name, weights=None).eval(), torch.zeros(2, 3, 64, 64))
    terms = layer_terms(graph, Linear("onnxruntime", folder=tmp_path))
    plan = irtool.plan(graph, "l2", budget={"macs": 0.4})
    pruned = irtool.prune(graph, plan, "drop")
    groups = irtool.channel_groups(graph)
    costs = width_cost(groups, (), terms)
    for net in (graph, pruned):
        layers = [found for node in net.nodes if (found := sample_of(node)) is not None]
        expected = sum(map(Linear.of, layers))
        widths = _widths(costs, graph, plan, net is pruned)
        total = costs.total(widths)["latency"]
        assert expected * 0.98 <= total <= expected * 1.6  # element-wise work comes on top


def _widths(costs, graph, plan, pruned):  # type: ignore[no-untyped-def]
    groups = irtool.channel_groups(graph)
    keep = np.ones(groups.group.size, bool)
    if pruned:
        entries = {(entry.parameter, entry.axis): entry for entry in plan.layers}
        for layer in groups.layers:
            name, axis = layer.key
            gone = entries[name, axis if isinstance(axis, int) else axis[0]].removed
            keep[np.isin(groups.group, groups.group[layer.labels.numpy()[list(gone)]])] = False
    return costs.widths(keep)


def test_what_engines_fuse_costs_nothing(tmp_path: Path) -> None:
    def total(*layers: nn.Module) -> float:
        graph = irtool.trace(nn.Sequential(*layers).eval(), torch.zeros(1, 3, 8, 8))
        terms = layer_terms(graph, Linear("onnxruntime", folder=tmp_path))
        return sum(cost * prod(value.sizes[axis] for value, axis in product) for cost, product in terms)

    conv = nn.Conv2d(3, 8, 3, padding=1)
    assert total(conv, nn.BatchNorm2d(8), nn.ReLU()) == pytest.approx(total(conv))
    assert total(conv, nn.Hardswish()) == pytest.approx(total(conv) + 8 * 8 * 8 * 1e-6)
