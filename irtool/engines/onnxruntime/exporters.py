"""The two ONNX exporters of PyTorch, each made to say what the module says.

The TorchScript one serves first: on ResNet-50 it takes about a second where the dynamo one takes six, its files keep the
module's names, go down to opset 11, and convert to MNN with a dynamic batch. Where it fails, the dynamo one is tried.
Neither is let fold batch norms into convolutions, which both do by default: what is fused is for irtool's passes to decide,
and a graph that says less than the module could not be compared with it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from irtool.engines.flat_module import FlatModule

# The dynamo exporter has no opset below this one; the TorchScript exporter none above that.
_DYNAMO_MIN, TORCHSCRIPT_MAX = 18, 20
# How an exporter names an operator that it has no ONNX form for.
_UNSUPPORTED = (
    re.compile(r"Exporting the operator '([^']+)' to ONNX"),
    re.compile(r"No ONNX function found for <OpOverload\(op='([^']+)'"),
    re.compile(r"ONNX export failed on an operator with unrecognized namespace ([\w:]+)"),
)


@dataclass(frozen=True)
class Job:
    """A module made ready: flat, with the results that a right file must give."""

    flat: FlatModule
    input_names: list[str]
    output_names: list[str]
    opset: int
    batched: list[bool]  # per input: whether axis 0 is the batch
    output_dims: list[list[int | str]]  # per output: its sizes, `N` for the batch, "" for what follows it in another way
    # (inputs, expected outputs), for the example's batch and, if dynamic, for twice that
    cases: list[tuple[list[torch.Tensor], list[torch.Tensor]]]

    @property
    def dynamic(self) -> bool:
        return any(self.batched)


def _torchscript(job: Job, raw: Path) -> onnx.ModelProto:
    torch.onnx.export(
        job.flat,
        tuple(job.flat.examples),
        str(raw),
        dynamo=False,
        opset_version=job.opset,
        input_names=job.input_names,
        output_names=job.output_names,
        dynamic_axes={name: {0: "N"} for name, free in zip(job.input_names, job.batched, strict=True) if free},
        # EVAL would fold every batch norm into the convolution before it. PRESERVE does not, and the module is in eval mode.
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=True,
    )
    return onnx.load(str(raw))


def _dynamo(job: Job, raw: Path) -> onnx.ModelProto:
    try:
        from onnxscript import optimizer
    except ImportError as error:
        raise ImportError("the dynamo exporter needs onnxscript (pip install onnxscript)") from error
    axes = tuple({0: torch.export.Dim("N")} if b else None for b in job.batched)
    program = torch.onnx.export(
        job.flat,
        tuple(job.cases[:2][-1][0]),  # an example batch of 1 would be taken for a constant
        dynamo=True,
        opset_version=max(job.opset, _DYNAMO_MIN),
        input_names=job.input_names,
        output_names=job.output_names,
        dynamic_shapes=(axes,) if job.dynamic else None,
        optimize=False,  # its optimiser folds batch norms too; the two steps of it that do not are called below
        verbose=False,
    )
    if program is None:
        raise RuntimeError("the exporter returned nothing")
    optimizer.fold_constants(program.model)
    optimizer.remove_unused_nodes(program.model)
    program.save(str(raw), external_data=True)
    return onnx.load(str(raw))


EXPORTERS: dict[str, Callable[[Job, Path], onnx.ModelProto]] = {"torchscript": _torchscript, "dynamo": _dynamo}


def unsupported_operator(error: Exception) -> str | None:
    """The operator that an exporter has no ONNX form for, if that is what its error is about."""
    text = _whole(error)
    return next((found[1] for pattern in _UNSUPPORTED if (found := pattern.search(text))), None)


def kept_whole(module: nn.Module) -> list[str]:
    """Paths of the parts that a traced program calls as they are: the user's own code, which no tracer could follow."""
    programs: list[Any] = [part for part in module.modules() if hasattr(getattr(part, "graph", None), "find_nodes")]
    called = {str(node.target): program for program in programs for node in program.graph.find_nodes(op="call_module")}
    own = {path: type(program.get_submodule(path)).__module__.partition(".")[0] for path, program in called.items()}
    return [path for path, package in own.items() if package not in ("torch", "torchvision", "irtool")]


def _whole(error: BaseException | None) -> str:
    """The error's text and its causes': the operator's name is often at the bottom."""
    texts: list[str] = []
    while error is not None and len(texts) < 10:
        texts.append(str(error))
        error = error.__cause__ or error.__context__
    return "\n".join(texts)
