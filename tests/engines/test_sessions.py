"""Sessions that run a model in an engine: what they refuse, and how they are compared and timed."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from clock import Clock, clocked
from torch import nn

from irtool.engines import OnnxSession, TensorSpec, TorchSession, export_onnx, latency, latency_pairs
from irtool.engines.agreement import relative_error
from irtool.engines.quiet import captured
from irtool.errors import BackendError, FileError, OptionError


def test_captured_holds_what_python_and_the_process_write() -> None:
    with captured() as said:
        warnings.warn("unseen", stacklevel=1)
        logging.getLogger("irtool.test").warning("unseen")
        import os

        os.write(1, b"from below\n")
        os.write(2, b"and below\n")
    assert said.lines == ["from below", "and below"]


def test_session_refuses_bad_files(tmp_path: Path) -> None:
    good = export_onnx(
        nn.Sequential(nn.Conv2d(3, 16, 3), nn.Flatten()), tmp_path / "good.onnx", example_inputs=torch.randn(1, 3, 8, 8)
    ).path
    (tmp_path / "empty.onnx").touch()
    (tmp_path / "cut.onnx").write_bytes(good.read_bytes()[:2000])
    (tmp_path / "text.onnx").write_text("a model? no.")
    for name, message in {
        "missing.onnx": "no such file.*Give the path",
        "": "is a folder",
        "empty.onnx": "empty.*Write it again",
        "cut.onnx": "not an ONNX model, or a truncated one.*Export it again",
        "text.onnx": "not an ONNX model.*Export it again",
    }.items():
        with pytest.raises(FileError, match=message):
            OnnxSession(tmp_path / name)
    node = onnx.helper.make_node("Nothing", ["x"], ["y"], domain="nowhere")
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph([node], "g", [value("x", 1, [1])], [value("y", 1, [1])])
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("nowhere", 1)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8), tmp_path / "op.onnx")
    with pytest.raises(BackendError, match=r"onnxruntime refuses the model.*Nothing.*another opset"):
        OnnxSession(tmp_path / "op.onnx")


def test_session_refuses_bad_arrays(tmp_path: Path) -> None:
    path = export_onnx(nn.Conv2d(3, 4, 3), tmp_path / "net.onnx", example_inputs=torch.randn(1, 3, 8, 8)).path
    for session in (OnnxSession(path), TorchSession(nn.Conv2d(3, 4, 3), torch.randn(1, 3, 8, 8))):
        good = np.zeros((2, 3, 8, 8), np.float32)
        for arrays, message in (
            ((), "0 arrays for 1 inputs.*input: float32 Nx3x8x8"),
            ((good.astype(np.float64),), "cannot be float64 2x3x8x8.*float32 Nx3x8x8"),
            ((good[:, :2],), "cannot be float32 2x2x8x8.*float32 Nx3x8x8"),
            ((good[0],), "cannot be float32 3x8x8"),
            ((good[:0],), "empty.*at least one sample"),
            ((torch.zeros(2, 3, 8, 8),), r"not a numpy array.*\.numpy\(\)"),
        ):
            with pytest.raises(BackendError, match=message):
                session.run(*arrays)  # type: ignore[arg-type]
        assert session.run(good.transpose(0, 1, 3, 2))[0].shape == (2, 4, 6, 6)  # not contiguous is no reason
    with pytest.raises(BackendError, match=r"threads=0.*one thread or more"):
        OnnxSession(path, threads=0)


def test_a_module_that_fails_inside_is_reported_in_one_line() -> None:
    with pytest.raises(BackendError, match=r"the module failed: unflatten.*Run the module") as caught:
        TorchSession(nn.Unflatten(0, (1, 2)), torch.randn(2, 4, 4)).run(np.zeros((3, 4, 4), np.float32))
    assert "\n" not in str(caught.value)


def test_relative_error_is_not_fooled() -> None:
    nan, inf = float("nan"), float("inf")
    assert relative_error(np.array([1.0, 2.0]), np.array([1.0, 4.0])) == 0.5
    assert relative_error(np.array([nan, inf, 1.0]), np.array([nan, inf, 1.0])) == 0.0
    for wrong in ([nan, 1.0], [inf, 1.0]):
        assert relative_error(np.array(wrong), np.array([0.0, 1.0])) > 1e100
        assert relative_error(np.array([0.0, 1.0]), np.array(wrong)) > 1e100
    assert relative_error(np.array([1e-9]), np.array([2e-9])) < 1e-5  # rounding around zero
    assert relative_error(np.zeros((0, 3)), np.zeros((0, 3))) == 0.0


class Scripted:
    """A session that only sleeps, and notes who ran when."""

    def __init__(self, name: str, pause: float, log: list[str], clock: Clock) -> None:
        self.engine, self._pause, self._log, self._clock = name, pause, log, clock
        self.inputs: tuple[TensorSpec, ...] = ()
        self.outputs: tuple[TensorSpec, ...] = ()

    def run(self, *arrays: np.ndarray) -> list[np.ndarray]:
        self._log.append(self.engine)
        self._clock.sleep(self._pause)
        return []


def test_latency_pairs_interleaves_and_compares_within_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    clock = clocked(monkeypatch, ["irtool.engines.latency"])
    result = latency_pairs([Scripted("a", 0.004, log, clock), Scripted("b", 0.002, log, clock)], [], runs=4, warmup=1)
    assert "".join(log) == "ab" + "ab" + "ba" + "ab" + "ba"
    assert [entry.runs for entry in result.latencies] == [4, 4]
    assert result.ratios[0] == 1.0
    assert result.ratios[1] == pytest.approx(0.5)
    assert result.intervals == ((1, 1), (0, float("inf")))  # of four rounds nothing is known
    first = result.latencies[0]
    assert [first.p10_ms, first.median_ms, first.p90_ms] == pytest.approx([4.0] * 3)


def test_times_shown_beside_ratios_agree_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second session's own median is 3 ms, three quarters of the first's 4; the rounds' quotients are 1/2, 2/5 and 3."""
    clock, log = clocked(monkeypatch, ["irtool.engines.latency"]), list[str]()

    class Uneven(Scripted):
        def __init__(self, name: str, *pauses: float) -> None:
            super().__init__(name, 0, log, clock)
            self._left = list(pauses)

        def run(self, *arrays: np.ndarray) -> list[np.ndarray]:
            self._pause = self._left.pop(0)
            return super().run(*arrays)

    result = latency_pairs([Uneven("a", 0.004, 0.010, 0.001), Uneven("b", 0.002, 0.004, 0.003)], [], runs=3, warmup=0)
    assert [one.median_ms for one in result.latencies] == pytest.approx([4, 3])
    assert result.ratios == pytest.approx((1, 0.5))
    assert result.milliseconds == pytest.approx((4, 2))
    for time, ratio in zip(result.milliseconds, result.ratios, strict=True):
        assert time / result.milliseconds[0] == pytest.approx(ratio)


def test_latency_stops_in_time_and_refuses_nonsense(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    session = Scripted("a", 0.01, log, clocked(monkeypatch, ["irtool.engines.latency"]))
    timed = latency(session, [], runs=1000, warmup=2, seconds=0.045)
    assert timed.runs == 5
    assert len(log) == timed.runs + 2
    assert latency(session, [], runs=9, warmup=0, seconds=1e-9).runs == 1
    for options, message in (({"runs": 0}, "at least one run"), ({"warmup": -1}, "0 times or more"), ({"seconds": 0.0}, "positive number")):
        with pytest.raises(OptionError, match=message):
            latency(session, [], **options)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="Pass at least one session"):
        latency_pairs([], [])


def test_each_compiled_session_is_compiled_however_many_there_were(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[int] = []

    def backend(module: torch.fx.GraphModule, _examples: list[torch.Tensor]) -> Callable[..., Any]:
        compiled.append(1)
        return module.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    monkeypatch.setattr("irtool.engines.torch.shutil.which", lambda name: name)
    for width in range(1, 13):  # torch stops at 8 compilations of the same code
        net = nn.Linear(3, width)
        session, before = TorchSession(net, torch.zeros(2, 3), compiled=True), len(compiled)
        for batch in (2, 1, 5):
            x = np.random.default_rng(batch).normal(size=(batch, 3)).astype(np.float32)
            np.testing.assert_allclose(session.run(x)[0], net(torch.from_numpy(x)).detach().numpy(), atol=1e-6)
        assert len(compiled) > before
