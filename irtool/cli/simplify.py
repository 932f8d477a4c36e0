"""`irtool simplify`: an ONNX file that says what it computes, and no more."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, cast

import typer

from irtool.atomic_files import scratch_folder
from irtool.cli import options
from irtool.cli.screen import answer, screen
from irtool.cli.screen import out as console
from irtool.cli.tables import chain_table
from irtool.errors import IrtoolError, OptionError, shown_as
from irtool.hosts.onnx.files.load import save_onnx
from irtool.hosts.onnx.graph import OnnxGraph
from irtool.passes import FoldBatchNorm, RemoveIdentity, Simplify
from irtool.workflows.equality.chain import Chain, Link, files_link, graph_link
from irtool.workflows.equality.chain_inputs import chain_inputs
from irtool.workflows.export import place
from irtool.workflows.folders.output_folder import keep_inputs, model_files
from irtool.workflows.loading.model_inputs import input_shapes, input_values
from irtool.workflows.loading.models import graph_of, onnx_file

_MORE = (1, 32)
"""Entries by which free axes are longer in other comparisons: the first axis, and others."""


def simplify(
    model: options.ModelArgument,
    out: Annotated[Path, typer.Option("--out", "-o", help="Write the simpler file here.", metavar="FILE")],
    inputs: options.Inputs = None,
    values: options.Values = None,
    fold: Annotated[
        bool, typer.Option("--fold-batchnorm", help="Fold batch norms into convolutions, too: equal but for rounding.")
    ] = False,
) -> None:
    """Fold the sizes that an .onnx file computes, and take out operators that are dead, repeated or do nothing.

    Weights stay as they are and free axes stay free. The two files are compared in onnxruntime at several sizes.

    Example: irtool simplify model.onnx --out simple.onnx
    """
    source = onnx_file(model)
    if source is None:
        raise OptionError("not an .onnx file", where=model, remedy="Write one with irtool export MODEL --out model.onnx.")
    keep_inputs([out], model_files(model, None))
    given = input_values(values)
    with screen() as progress, scratch_folder() as scratch, shown_as(scratch / out.name, out):
        with progress.stage("read"):
            graph = cast(OnnxGraph, graph_of(model, None, input_shapes(inputs), values=given))
        with progress.stage("simplify"):
            simple = RemoveIdentity()(Simplify()(graph).graph).graph
            simple = FoldBatchNorm()(simple).graph if fold else simple
        draft = scratch / out.name
        save_onnx(simple, draft)
        with progress.stage("compare at several sizes"):
            chain = Chain(tuple(_links(graph, simple, source if not given else None, draft)))
            chain.require()
        place(draft, out)
    before = graph.operators
    facts = {"file": str(out), "bytes": out.stat().st_size, "operators": [before, len(simple.host.nodes)], "notes": list(graph.notes)}
    answer(facts | {"chain": chain.to_dict()})
    console().print(chain_table(chain))
    for note in graph.notes:
        console().print(note, markup=False)
    console().print(f"written: {out} ({out.stat().st_size:,} bytes), {before:,} operators became {len(simple.host.nodes):,}")


def _links(graph: OnnxGraph, simple: OnnxGraph, source: Path | None, draft: Path) -> list[Link]:
    """The two compared at the example's sizes, at another batch and at other sizes of free axes, as far as the original takes them."""
    links: list[Link] = []
    for sizes in _sizes(graph):
        try:
            original = graph if sizes == graph.sizes else graph.at(sizes)
            inputs = chain_inputs(original.example_inputs, batch=_batch(sizes))
            original.run(*inputs, values=original.compared())
        except IrtoolError:
            if links:
                continue  # the file takes no such sizes itself
            raise
        if source is not None:
            links.append(files_link(source, draft, inputs))
        else:
            links.append(graph_link(graph, simple, inputs))
    return links


def _batch(sizes: Mapping[str, tuple[int, ...]]) -> int:
    return next((shape[0] for shape in sizes.values() if shape), 1)


def _sizes(graph: OnnxGraph) -> list[dict[str, tuple[int, ...]]]:
    """The example's sizes; one image more; free axes longer."""
    found = [dict(graph.sizes)]
    for kind in (True, False):
        other = {}
        for value in graph.header.graph.input:
            dims = value.type.tensor_type.shape.dim
            old = graph.sizes.get(value.name)
            if old is not None:
                more = [_MORE[0] if axis == 0 else _MORE[1] for axis in range(len(old))]
                other[value.name] = tuple(
                    size + (more[axis] if not dims[axis].dim_value and (axis == 0) is kind else 0) for axis, size in enumerate(old)
                )
        if other not in found:
            found.append(other)
    return found
