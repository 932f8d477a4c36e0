"""Writing a module as one ONNX file, and showing that the file computes what the module computes."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from irtool.atomic_files import replacing
from irtool.engines.flat_module import FlatModule, Source, evaluating, resolve, result_names, tensors_of
from irtool.engines.onnxruntime.cleanup import clean
from irtool.engines.onnxruntime.exporters import EXPORTERS, TORCHSCRIPT_MAX, Job, unsupported_operator
from irtool.engines.onnxruntime.session import onnxruntime
from irtool.engines.onnxruntime.verify import verified
from irtool.engines.quiet import captured
from irtool.errors import ExportError, IrtoolError, OptionError
from irtool.hosts.onnx.files.file import move_with_weights
from irtool.hosts.torch.modules import kept_whole
from irtool.temporary import folder_beside
from irtool.tensor_defaults import plain_tensors

# A protobuf message cannot exceed 2 GiB; above this the weights go to a file beside the model.
INLINE_LIMIT = 2**31 - 2**24
_OPSETS = range(11, 27)


@dataclass(frozen=True)
class OnnxExport:
    """The .onnx file that was written.

    Attributes:
        path: the file.
        bytes: its size, with the weights beside it if there are any.
        exporter: which one served: `torchscript` or `dynamo`.
        opset: the operator set of the file; the dynamo exporter may have raised it.
        input_names, output_names: in the module's order.
        dynamic_batch: whether axis 0 of the inputs is free.
        max_error: the largest difference between onnxruntime and torch on random inputs, relative to the largest
            output; None if it was not checked.
        note: why the first exporter did not serve, or "".
    """

    path: Path
    bytes: int
    exporter: str
    opset: int
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    dynamic_batch: bool
    max_error: float | None
    note: str


@plain_tensors()
def export_onnx(
    source: Source | nn.Module,
    path: str | os.PathLike[str],
    *,
    example_inputs: Any = None,
    opset: int = 17,
    dynamic_batch: bool = True,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    metadata: Mapping[str, str] | None = None,
    exporter: str = "auto",
    verify: bool = True,
) -> OnnxExport:
    """Write the module in eval mode as ONNX; its training flags are as before afterwards.

    Batch norms stay as they are (run the folding pass first to have them folded). Nested inputs and outputs become flat
    lists, named after dict keys and positions. The file appears at `path` only once it has passed onnx's checker and, with
    `verify`, has given torch's numbers in onnxruntime, at a second batch size too if the batch is dynamic.

    Args:
        source: a graph, or a bare module with `example_inputs`.
        path: the .onnx file. Weights of 2 GB and more go to `<path>.data`.
        example_inputs: a tensor or a tuple of (nested) tensors.
        opset: the operator set, 11 to 26.
        dynamic_batch: leave axis 0 free on every input that has the first input's size there.
        input_names, output_names: one name per tensor; made from the module's own if left out.
        metadata: written to the file's metadata_props.
        exporter: `torchscript`, `dynamo`, or `auto`: the first that gives a right file.
        verify: compare with torch in onnxruntime.

    Raises:
        ExportError: an operator has no ONNX form, the batch is written into the module as a number, or the file's numbers are wrong.
        OptionError: an unknown exporter or opset, or names of the wrong number.
        BackendError: no example inputs, or onnxruntime is absent and `verify` is asked for.
        FileError: the file cannot be written.
    """
    job = _prepare(source, example_inputs, opset, dynamic_batch, input_names, output_names)
    attempts = _order(exporter, opset)
    if verify:
        onnxruntime()  # if it is absent, say so before the work
    where = type(getattr(source, "module", source)).__name__
    return _first_right(job, attempts, Path(path), dict(metadata or {}), verify, where)


def _first_right(job: Job, attempts: Sequence[str], target: Path, metadata: dict[str, str], verify: bool, where: str) -> OnnxExport:
    """Write the file by the first exporter that serves. Raises ExportError if none does."""
    failures: list[tuple[str, Exception]] = []
    with replacing(target) as temporary, folder_beside(target.parent) as folder:
        for name in attempts:
            draft = folder / name / target.name
            draft.parent.mkdir()
            try:
                error, written = _attempt(name, job, draft, metadata, verify)
            except OSError:
                raise  # a full disk is full for the next exporter too
            except Exception as failure:  # exporters raise whatever their parts raise; the next one may serve
                failures.append((name, failure))
                continue
            size = _move(draft, temporary, target)
            names = tuple(job.input_names), tuple(job.output_names)
            return OnnxExport(target, size, name, written, *names, job.dynamic, error, _note(failures))
        raise _failure(failures, where=where, dynamic=job.dynamic, whole=kept_whole(job.flat))


def _prepare(
    source: Source | nn.Module,
    example_inputs: Any,
    opset: int,
    dynamic_batch: bool,
    input_names: Sequence[str] | None,
    names: Sequence[str] | None,
) -> Job:
    module, examples = resolve(source, example_inputs)
    flat = FlatModule(module, examples)
    where = type(module).__name__
    first = flat.examples[0]
    batched = [dynamic_batch and t.dim() > 0 and first.dim() > 0 and t.shape[0] == first.shape[0] for t in flat.examples]
    cases, result = _cases(flat, batched, where)
    outs = cases[0][1]
    if not outs:
        raise ExportError("the module returns no tensor", where=where, remedy="Return a tensor, or a tuple or dict of tensors.")
    if len({len(made) for _, made in cases}) > 1:
        raise ExportError(
            f"how many tensors the module returns hangs on the batch: {len(outs)} at the example's, {len(cases[1][1])} at twice that",
            where=where,
            remedy="Pass dynamic_batch=False.",
        )
    output_dims = [_dims(a.shape, b.shape, first.shape[:1]) for a, b in zip(outs, cases[1 if any(batched) else 0][1], strict=True)]
    return Job(
        flat,
        _names("input_names", input_names, flat.input_names),
        _names("output_names", names, _distinct(result_names(result), flat.input_names if input_names is None else input_names)),
        check_opset(opset),
        batched,
        output_dims,
        cases,
    )


def _cases(flat: FlatModule, batched: Sequence[bool], where: str) -> tuple[list[tuple[list[torch.Tensor], list[torch.Tensor]]], Any]:
    """Run the module on random inputs, at other batch sizes too where that is free; returns inputs with results, and the last nest."""
    batches = [list(flat.examples)]
    if any(batched):
        batches += [[_longer(t, extra) if b else t for t, b in zip(flat.examples, batched, strict=True)] for extra in (0, 3)]
    cases: list[tuple[list[torch.Tensor], list[torch.Tensor]]] = []
    result: Any = None
    with evaluating(flat):
        for inputs in batches:
            fresh = [_random(t) for t in inputs]
            try:
                result = flat.observed(*fresh)
                cases.append((fresh, tensors_of(result)))
            except (RuntimeError, ValueError, IndexError, AssertionError) as error:
                if len(cases) < _NEEDED:
                    raise _run_failure(error, where, len(cases)) from error
    return cases, result


def _dims(shape: Sequence[int], grown: Sequence[int], batch: Sequence[int]) -> list[int | str]:
    """An output's sizes, read off its shapes at the example's batch and at twice that."""
    free = ["N" if axis == 0 and [size] == list(batch) else "" for axis, size in enumerate(shape)]
    return [size if size == other else name for size, other, name in zip(shape, grown, free, strict=True)]


def _distinct(names: list[str], taken: Sequence[str]) -> list[str]:
    """Names that no input has: ONNX has one name space for both."""
    return [f"{name}_out" if name in taken else name for name in names]


def _random(like: torch.Tensor) -> torch.Tensor:
    """Standard normal values for floats, the example's own values for the rest (indices must stay in range)."""
    if not like.is_floating_point():
        return like
    generator = torch.Generator().manual_seed(0)
    return torch.randn(like.shape, generator=generator).to(like.device, like.dtype)


def _names(option: str, given: Sequence[str] | None, default: list[str]) -> list[str]:
    if given is None:
        return default
    names = [given] if isinstance(given, str) else list(given)
    if len(names) != len(default) or len(set(names)) != len(names) or not all(names):
        raise OptionError(
            f"{option}={names}", where="export_onnx", remedy=f"Give {len(default)} different names, one for each of {default}."
        )
    return names


def check_opset(opset: int) -> int:
    """The operator set that is asked for.

    Raises:
        OptionError: none that files can be written in.
    """
    if opset not in _OPSETS:
        raise OptionError(f"opset={opset}", where="export_onnx", remedy=f"Choose {_OPSETS.start} to {_OPSETS.stop - 1}; 17 suits MNN.")
    return opset


_NEEDED = 2
"""Batches that a module must take. At an odd one, which shows a batch that is held where rows are put together, it may fail."""


def _longer(tensor: torch.Tensor, extra: int) -> torch.Tensor:
    """Twice as many along axis 0, and some."""
    count = 2 * tensor.shape[0] + extra
    return torch.cat([tensor] * -(-count // max(tensor.shape[0], 1)))[:count]


def _order(exporter: str, opset: int) -> list[str]:
    if exporter in EXPORTERS:
        return [exporter]
    if exporter != "auto":
        raise OptionError(f"exporter={exporter!r}", where="export_onnx", remedy=f"Choose auto, {' or '.join(EXPORTERS)}.")
    return ["torchscript", "dynamo"] if opset <= TORCHSCRIPT_MAX else ["dynamo"]


def _attempt(name: str, job: Job, draft: Path, metadata: dict[str, str], verify: bool) -> tuple[float | None, int]:
    """Export, clean, write, check; the error against torch and the opset written."""
    with evaluating(job.flat), captured():
        model = EXPORTERS[name](job, draft.parent / "raw.onnx")
    clean(model, output_dims=job.output_dims, metadata=metadata)
    _save(model, draft)
    onnx.checker.check_model(str(draft), full_check=True)
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    return (verified(job, draft) if verify else None), opset


def _save(model: onnx.ModelProto, draft: Path) -> None:
    if model.ByteSize() < INLINE_LIMIT:
        onnx.save(model, str(draft))
    else:
        onnx.save(model, str(draft), save_as_external_data=True, all_tensors_to_one_file=True, location=f"{draft.name}.data")


def _move(draft: Path, temporary: Path, target: Path) -> int:
    """Put the finished draft in place, the weights beside it first; the bytes of both."""
    weights, size = draft.with_name(f"{draft.name}.data"), draft.stat().st_size
    if weights.exists():
        size += weights.stat().st_size
    move_with_weights(draft, temporary, target)
    return size


def _note(failures: list[tuple[str, Exception]]) -> str:
    return "; ".join(f"{name} failed: {_first_line(error)}" for name, error in failures)


_GUIDE = re.compile(r"\s*(\x1b\[[0-9;]*m)*This is step \d/\d")
"""Beginning of the guide to an exporter's own steps, which tells nothing of the module."""


def _first_line(error: BaseException) -> str:
    """The first line of an error's text; of its cause, where the text is a guide for the exporter's users."""
    while _GUIDE.search(str(error)) and error.__cause__ is not None:
        error = error.__cause__
    said = error.what if isinstance(error, IrtoolError) else str(error)  # the place of ours is a draft that nobody will see
    lines = (line.strip() for line in _GUIDE.split(said)[0].splitlines())
    return next(filter(None, lines), type(error).__name__)[:200]


def _run_failure(error: Exception, where: str, case: int) -> ExportError:
    if case == 0:
        return ExportError(
            f"the module fails on its example inputs: {_first_line(error)}", where=where, remedy="Give inputs that it takes."
        )
    return ExportError(
        f"the module takes no other batch size than its example's: {_first_line(error)}",
        where=where,
        remedy="Pass dynamic_batch=False, or write the batch as x.size(0) or -1 in the model.",
    )


def _failure(failures: list[tuple[str, Exception]], *, where: str, dynamic: bool, whole: Sequence[str] = ()) -> ExportError:
    """The error to raise when no exporter served: an operator's name if one is known, else parts that stayed whole, else all complaints."""
    for _, error in failures:
        if operator := unsupported_operator(error):
            return ExportError(
                f"the operator {operator} has no ONNX form",
                where=where,
                remedy="Replace it with operators that ONNX has, or export the module without that part.",
            )
    if whole:
        return ExportError(
            f"{', '.join(whole[:3])} could not be traced and does not go into a file either ({_note(failures)})",
            where=where,
            remedy="What it computes hangs on numbers that a file would hold as the example's. Export the part before it: trace(..., within=...).",
        )
    first = "Pass dynamic_batch=False if the module holds its batch as a number; else try" if dynamic else "Try"
    return ExportError(_note(failures), where=where, remedy=f"{first} another opset, or export a part of the module to find what fails.")
