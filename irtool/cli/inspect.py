"""`irtool inspect`: what can be pruned, what cannot and why, and what it costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
import typer
from rich.markup import escape
from rich.table import Table

from irtool.analysis.cost import Cost, cost
from irtool.channels.groups import ChannelGroups, channel_groups
from irtool.cli import options
from irtool.cli.screen import answer, screen
from irtool.cli.screen import out as console
from irtool.ir import Graph
from irtool.workflows.loading.model_inputs import input_shapes, input_values
from irtool.workflows.loading.models import graph_of


@dataclass(frozen=True)
class LayerRow:
    """A layer that makes channels.

    Attributes:
        layer: its module path.
        op: its operator.
        family: layers of one number share channels and are pruned together.
        channels: how many it makes.
        prunable: how many of them can go.
        reason, where: why the others must stay, and where that was found; empty if none must.
    """

    layer: str
    op: str
    family: int
    channels: int
    prunable: int
    reason: str
    where: str


def inspect(
    model: options.ModelArgument,
    weights: options.Weights = None,
    inputs: options.Inputs = None,
    values: options.Values = None,
    costs: Annotated[bool, typer.Option("--costs", help="Also show what each node costs.")] = False,
    text: Annotated[bool, typer.Option("--text", help="Also show the graph as text.")] = False,
) -> None:
    """List each layer that makes channels: which ones share them, how many can be pruned, and why the others cannot.

    Example: irtool inspect torchvision.models:mobilenet_v2 --input 1x3x224x224
    """
    with screen() as progress, progress.stage("read", logged=False):
        graph = graph_of(model, weights, input_shapes(inputs), sound=False, values=input_values(values))
    groups, price = channel_groups(graph), cost(graph)
    rows = list(layer_rows(groups))
    answer(plain(graph, rows, price))
    if text:
        console().print(graph.text() + "\n", markup=False)
    console().print(_table(model, rows))
    console().print(f"\nread by: {graph.tracer}; {len(graph.nodes)} nodes, of which unknown to irtool: {_unknown(graph)}", markup=False)
    for note in graph.notes:
        console().print(f"note: {note}", markup=False)
    if costs:
        console().print("\n" + price.text(), markup=False)
        return
    console().print(f"{price.params:,} parameters, {price.macs:,} MACs a sample, {price.weight_bytes:,} bytes of weights")


def layer_rows(groups: ChannelGroups) -> Iterator[LayerRow]:
    """The layers in graph order."""
    family_of = {id(layer): number for number, family in enumerate(groups.families, 1) for layer in family}
    for layer in groups.layers:
        own = groups.group[layer.labels.numpy()]
        pinned = own[groups.pinned[own]]
        pin = groups.reasons[int(pinned[0])] if pinned.size else None
        yield LayerRow(
            layer.node.location,
            layer.node.op,
            family_of[id(layer)],
            int(own.size),
            int(own.size - np.count_nonzero(groups.pinned[own])),
            pin.reason if pin is not None else "",
            pin.location if pin is not None else "",
        )


def _table(model: str, rows: list[LayerRow]) -> Table:
    table = Table(title=f"{model}: layers that make channels", title_justify="left", title_style="bold", box=None, pad_edge=False)
    for name in ("layer", "op"):
        table.add_column(name, no_wrap=True)
    for name in ("family", "channels", "prunable"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("why not")
    for row in rows:
        why = f"{row.reason} (at {row.where})" if row.reason else ""
        table.add_row(escape(row.layer), row.op, str(row.family), f"{row.channels:,}", f"{row.prunable:,}", escape(why))
    return table


_LISTED = 5


def _unknown(graph: Graph) -> str:
    places = [f"{node.callee} at {node.location}" for node in graph.nodes if node.op == "Opaque"]
    more = f" and {len(places) - _LISTED} more" if len(places) > _LISTED else ""
    return ", ".join(places[:_LISTED]) + more if places else "none"


def plain(graph: Graph, rows: list[LayerRow], price: Cost) -> dict[str, Any]:
    """Give what is known of a model as JSON data."""
    totals = {name: value for name, value in price.to_dict().items() if name != "nodes"}
    return {
        "tracer": graph.tracer,
        "notes": list(graph.notes),
        "nodes": len(graph.nodes),
        "layers": [asdict(row) for row in rows],
        "cost": totals,
    }
