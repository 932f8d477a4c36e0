"""A model as files for engines: written aside, compared with the model and with each other, then put in their places."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

from irtool.analysis.randomness import require_repeatable
from irtool.atomic_files import replacing, scratch_folder
from irtool.engines import export_onnx
from irtool.engines.agreement import sample_inputs
from irtool.engines.engine import Engine
from irtool.engines.onnxruntime.export import check_opset
from irtool.engines.onnxruntime.session import OnnxSession
from irtool.engines.table import OTHERS, REFERENCE, by_suffix
from irtool.errors import OptionError, shown_as
from irtool.hosts.onnx.files.load import save_onnx
from irtool.hosts.onnx.graph import OnnxGraph
from irtool.hosts.torch.graph import FxGraph
from irtool.ir.graph import Graph
from irtool.passes import fold_batchnorm
from irtool.progress import Reporter
from irtool.workflows.equality.chain import (
    Chain,
    Link,
    engine_link,
    files_link,
    half_link,
    onnx_link,
)
from irtool.workflows.equality.chain_inputs import chain_inputs, fitting_inputs, own_inputs, takes_any_batch

OWN_SUFFIXES = tuple(row.suffix for row in OTHERS if row.convert is not None)
"""Suffixes of engines that have files of their own."""


def write_files(
    graph_of: Callable[[], Graph],
    source: Path | None,
    out: Sequence[Path],
    reporter: Reporter,
    *,
    fold: bool = True,
    opset: int = 17,
    dynamic_batch: bool | None = None,
    half: bool = False,
) -> Chain:
    """Write a model for the engines that the suffixes of files name; nothing appears unless all agree.

    Args:
        graph_of: reads or traces the model.
        source: the ONNX file that it lies in, if it does; without an .onnx file to write it is converted as it is.
        out: the files.
        reporter: is told of each stage.
        fold: fold batch norms into the layers before them first.
        opset: of the ONNX file.
        dynamic_batch: leave the batch size free; None: where the model lets it.
        half: store weights as half floats: half of the bytes, computed in float.

    Returns:
        The links between the model and its files.

    Raises:
        CheckError: a file differs from what it was made from.
        OptionError: a suffix that no engine has, or twice the same.
        FileError: a file cannot be written.
    """
    files = _by_suffix(out)
    check_opset(opset)
    with scratch_folder() as scratch, ExitStack() as names:
        drafts = _Drafts(scratch, files, half)
        for path, name in drafts.names(source):
            names.enter_context(shown_as(path, name))
        if source is not None and REFERENCE.suffix not in files:
            with reporter.stage("convert"):
                graph_of()  # refuses what asks for too much, which the engines would try
                chain = Chain(tuple(drafts.converted(source, tuple(sample_inputs(OnnxSession(source).inputs)))))
        else:
            with reporter.stage("trace"):
                graph = graph_of()
            graph = fold_batchnorm(graph) if fold else graph
            chain = Chain(tuple(_links(graph, source, drafts, reporter, opset, dynamic_batch)))
        chain.require()
        drafts.place()
    return chain


def _by_suffix(out: Sequence[Path]) -> dict[str, Path]:
    """The files by suffix.

    Raises:
        OptionError: a suffix that no engine has, or twice the same.
    """
    found: dict[str, Path] = {}
    for path in out:
        if path.suffix != REFERENCE.suffix and by_suffix(path.suffix) is None:
            remedy = f"Give a name that ends in {' or '.join((REFERENCE.suffix, *OWN_SUFFIXES))}."
            raise OptionError(f"no engine has files called {path.name}", where="--out", remedy=remedy)
        if path.suffix in found:
            raise OptionError(f"two files that end in {path.suffix}", where="--out", remedy="Give one of each kind.")
        found[path.suffix] = path
    return found


def _links(graph: Graph, source: Path | None, drafts: _Drafts, reporter: Reporter, opset: int, dynamic_batch: bool | None) -> list[Link]:
    """Write the ONNX file and convert it; each file against what it was made from."""
    onnx = drafts.onnx
    if isinstance(graph, OnnxGraph):
        assert source is not None
        inputs = fitting_inputs(graph, chain_inputs(graph.example_inputs))
        with reporter.stage("write ONNX"):
            save_onnx(graph, onnx)
            links = [files_link(source, onnx, inputs)]
    else:
        traced = cast(FxGraph, graph)
        require_repeatable(traced)
        free = takes_any_batch(traced) if dynamic_batch is None else dynamic_batch
        inputs = fitting_inputs(traced, chain_inputs(traced.example_inputs)) if free else own_inputs(traced)
        with reporter.stage("export to ONNX"):
            export_onnx(traced, onnx, opset=opset, dynamic_batch=free)
            links = [onnx_link(traced, onnx, inputs)]
    if drafts.engines:
        with reporter.stage("convert"):
            links += drafts.converted(onnx, inputs)
    if drafts.half and REFERENCE.suffix in drafts.targets:
        with reporter.stage("store half floats"):
            links.append(drafts.halved(inputs))
    return links


class _Drafts:
    """The files while they are made, in a folder of their own each, so that what they are called in the end does not matter."""

    def __init__(self, scratch: Path, targets: Mapping[str, Path], half: bool = False) -> None:
        self.targets, self.half = targets, half
        self.engines: dict[str, Engine] = {suffix: row for suffix in targets if (row := by_suffix(suffix)) is not None}
        self.folders = {suffix: scratch / suffix.removeprefix(".") for suffix in (REFERENCE.suffix, *self.engines)}
        for folder in self.folders.values():
            folder.mkdir()
        self.onnx = self.folders[REFERENCE.suffix] / self.targets.get(REFERENCE.suffix, Path("model.onnx")).name

    def names(self, source: Path | None) -> Iterator[tuple[Path, str]]:
        """Each draft, with what the user calls it."""
        yield self.onnx, str(self.targets.get(REFERENCE.suffix) or f"ONNX file on the way to {next(iter(self.targets.values()))}")
        stem = self.onnx.stem if source is None or REFERENCE.suffix in self.targets else source.stem
        for suffix in self.engines:
            yield self.folders[suffix] / f"{stem}{suffix}", str(self.targets[suffix])

    def converted(self, onnx: Path, inputs: tuple[Any, ...]) -> list[Link]:
        """Make the engines' files, and compare each with the ONNX file."""
        links = []
        for suffix, row in self.engines.items():
            file = row.written(onnx, self.folders[suffix], verify=False)
            links.append(engine_link(row, onnx, file, inputs))
            if self.half:
                row.int8.write_half(onnx, file)
                links.append(half_link(row, onnx, file, inputs))
        return links

    def halved(self, inputs: tuple[Any, ...]) -> Link:
        """Put half floats into the ONNX file, and compare it with what it was. To be done last: the others are made of it."""
        lighter = self.onnx.with_name(f"half-{self.onnx.name}")
        REFERENCE.int8.write_half(self.onnx, lighter)
        link = half_link(REFERENCE, self.onnx, lighter, inputs)
        self.onnx.with_name(f"{self.onnx.name}.data").unlink(missing_ok=True)
        lighter.replace(self.onnx)
        return link

    def place(self) -> None:
        """Move all that was asked for to where it was asked for."""
        for suffix, target in self.targets.items():
            (draft,) = (path for path in self.folders[suffix].iterdir() if path.suffix == suffix)
            for path in self.engines[suffix].files_of(draft)[1:] if suffix in self.engines else ():
                place(path, target.with_suffix(path.suffix))
            place(draft, target)


def place(draft: Path, target: Path) -> None:
    """Move a finished file, and the weights that may lie beside it, to where it was asked for."""
    beside = draft.with_name(f"{draft.name}.data")
    if beside.exists():
        with replacing(target.with_name(beside.name)) as temporary:
            shutil.copyfile(beside, temporary)
    with replacing(target) as temporary:
        shutil.copyfile(draft, temporary)
