"""ncnn as an engine."""

from __future__ import annotations

import importlib
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from irtool.atomic_files import scratch_folder
from irtool.engines.isolated import in_process
from irtool.engines.ncnn.param import Layer, read_param
from irtool.engines.quiet import captured
from irtool.engines.session import TensorSpec, checked, model_file, run_failed, thread_count
from irtool.errors import BackendError, FileError
from irtool.extras import EXTRAS

_CHILD = Path(__file__).with_name("child.py")
_HALVES = ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_packed", "use_bf16_storage")


class NcnnSession:
    """An ncnn model, a `.param` file with its `.bin` file beside it, on the CPU, in float32.

    ncnn has no batch: each sample runs by itself, so axis 0 of each input is free.

    Args:
        path: the .param file.
        threads: threads; all cores if None.
        exact: without Winograd convolutions, which round more and are faster.

    Raises:
        FileError: one of the two files is missing, empty, truncated or not ncnn's.
        BackendError: ncnn is absent, or refuses the model; from `run`: arrays that do not fit, or a failure inside.
    """

    engine = "ncnn"

    def __init__(self, path: str | os.PathLike[str], threads: int | None = None, *, exact: bool = False) -> None:
        self.path = model_file(path, ".param")
        weights = _weights(self.path)
        self.layers = read_param(self.path)
        ncnn = ncnn_module()
        self._ncnn, self._net = ncnn, ncnn.Net()
        options = self._net.opt
        options.use_vulkan_compute, options.num_threads = False, thread_count(threads)
        for name in _HALVES:
            setattr(options, name, False)
        options.use_winograd_convolution = not exact
        with captured() as said:
            failed = self._net.load_param(str(self.path)) or self._net.load_model(str(weights))
        if failed:
            raise _refused(self.path, said.lines)
        self._inputs = tuple(_spec(layer) for layer in self.layers if layer.kind == "Input")
        self._names = in_order(self._net.output_names())
        self._outputs: tuple[TensorSpec, ...] | None = None

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """A file does not hold output shapes: they are known by running once, on zeros; not where an input states no size."""
        if self._outputs is None:
            if any(spec.shape is None for spec in self._inputs):
                self._outputs = tuple(TensorSpec(name, None, "float32") for name in self._names)
            else:
                results = self.run(*(np.zeros([size or 1 for size in spec.shape or ()], np.float32) for spec in self._inputs))
                self._outputs = tuple(TensorSpec(n, (None, *r.shape[1:]), "float32") for n, r in zip(self._names, results, strict=True))
        return self._outputs

    def run(self, *arrays: np.ndarray) -> list[np.ndarray]:
        """One array per output, samples along axis 0, copied out of ncnn's memory."""
        fit = checked(self.engine, self._inputs, arrays)
        if len({len(array) for array in fit}) != 1:
            raise run_failed("its inputs have different numbers of samples", self.path)
        samples = [self._sample([array[index] for array in fit]) for index in range(len(fit[0]))]
        return [np.stack(results) for results in zip(*samples, strict=True)]

    def times(self, arrays: Sequence[np.ndarray]) -> Mapping[str, float]:
        """Milliseconds of one sample by kind of layer: each layer's outputs are asked for in turn, and what is there is kept."""
        extractor, spent = self._extractor([array[0] for array in arrays]), dict[str, float]()
        for layer in self.layers:
            begun = time.perf_counter()
            for name in layer.outputs if layer.kind != "Input" else ():
                extractor.extract(name)
            spent[layer.kind] = spent.get(layer.kind, 0.0) + (time.perf_counter() - begun) * 1e3
        spent.pop("Input", None)
        return spent

    def _extractor(self, sample: Sequence[np.ndarray]) -> Any:
        extractor = self._net.create_extractor()
        extractor.set_light_mode(False)
        for spec, array in zip(self._inputs, sample, strict=True):
            extractor.input(spec.name, self._ncnn.Mat(np.ascontiguousarray(array)).clone())
        return extractor

    def _sample(self, sample: Sequence[np.ndarray]) -> list[np.ndarray]:
        extractor, found = self._extractor(sample), []
        for name in self._names:
            failed, mat = extractor.extract(name)
            if failed:
                raise run_failed(f"ncnn gives no {name!r} ({failed})", self.path)
            found.append(np.array(mat))
        return found


def in_order(names: Sequence[str]) -> tuple[str, ...]:
    """The names of outputs in the order of the model: ncnn lists them as its layers come, and pnnx numbers them."""
    numbered = all(re.fullmatch(r"out\d+", name) for name in names)
    return tuple(sorted(names, key=lambda name: int(name[3:]))) if numbered else tuple(names)


def ncnn_module() -> Any:
    """The package, or a BackendError that says how to get it."""
    try:
        with captured():
            return importlib.import_module("ncnn")
    except ImportError as error:
        raise BackendError("ncnn is not installed", remedy=f"{EXTRAS['ncnn'].command}.") from error


def probe(path: Path, timeout: float = 600.0) -> None:
    """Load and run a file in another process, on zeros: a damaged one may end it.

    Raises:
        FileError: it is missing, damaged, or not ncnn's.
        BackendError: ncnn is absent.
    """
    model_file(path, ".param")
    _weights(path)
    read_param(path)
    ncnn_module()
    run_apart(path, None, timeout)


def _weights(path: Path) -> Path:
    """The .bin file of a model, which is empty where no layer has weights."""
    found = path.with_suffix(".bin")
    if not found.is_file():
        raise FileError("no such file", where=str(found), remedy=f"Keep the .bin file beside {path.name}: its weights are in it.")
    return found


def run_apart(path: Path, arrays: Sequence[np.ndarray] | None, timeout: float = 600.0) -> list[np.ndarray]:
    """Run a file once in another process, on zeros by default; its outputs.

    Raises:
        FileError: it dies there, or refuses.
    """
    with scratch_folder() as folder:
        np.savez(folder / "in.npz", *(arrays or ()))
        died, said = in_process([sys.executable, str(_CHILD), str(path.absolute()), "in.npz", "out.npz"], folder, timeout)
        if died or not (folder / "out.npz").is_file():
            reason = _failure(died, [line.strip() for line in said.splitlines() if line.strip()])
            raise FileError(reason, where=str(path), remedy="It is damaged, or needs what ncnn lacks: export it again.")
        with np.load(folder / "out.npz") as held:
            return [held[f"arr_{index}"] for index in range(len(held.files))]


def _failure(died: str, lines: Sequence[str]) -> str:
    """Tell what a run in another process died of: the layer that ncnn names as unknown to it, else its last line."""
    unknown = next((found[1] for line in lines if (found := re.search(r"layer (\S+) not exists", line))), None)
    if unknown is not None:
        return f"ncnn has no layer {unknown}"
    return f"ncnn {died or 'gave nothing'}: {lines[-1][:200] if lines else 'it said nothing'}"


def _refused(path: Path, lines: Sequence[str]) -> FileError:
    told = next((line for line in lines if "not exists" in line or "failed" in line), lines[-1] if lines else "")
    detail = f" ({told.strip()[:200]})" if told.strip() else ""
    return FileError(
        f"ncnn cannot load it{detail}", where=str(path), remedy="It is damaged, or has layers that ncnn lacks: export it again."
    )


def _spec(layer: Layer) -> TensorSpec:
    sample = layer.sample
    return TensorSpec(layer.outputs[0], None if sample is None else (None, *sample), "float32")
