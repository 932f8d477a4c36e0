"""Making an exporter's file say what the module says: the module's own names, one initializer per parameter, no paths."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import onnx

from irtool.engines.flat_module import INNER


def clean(model: onnx.ModelProto, *, output_dims: list[list[int | str]], metadata: Mapping[str, str]) -> None:
    """Clean a freshly exported model in place.

    - Names lose the wrapper (`irtool_inner.conv.weight` becomes `conv.weight`, `/irtool_inner/conv/Conv` `/conv/Conv`).
    - A parameter that the exporter replaced by an Identity of another with equal values (untrained batch norms have
      many) gets its own initializer back: two layers must not seem tied because their numbers happen to agree.
    - Source locations, which hold the paths of the exporting machine, go.
    - The outputs get the sizes that the module gave (exporters often know them less well): a number, a name, or "" for
      unknown. `metadata` is added.
    """
    for graph in _graphs(model.graph):
        _restore_parameters(graph)
        _rename(graph, _without_wrapper)
        for node in graph.node:
            node.ClearField("doc_string")
            del node.metadata_props[:]
        for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
            del value.metadata_props[:]
            value.ClearField("doc_string")
        graph.ClearField("doc_string")
        del graph.metadata_props[:]
    for value, dims in zip(model.graph.output, output_dims, strict=True):
        value.type.tensor_type.shape.Clear()
        for size in dims:
            dim = value.type.tensor_type.shape.dim.add()
            if isinstance(size, int):
                dim.dim_value = size
            elif size:
                dim.dim_param = size
        value.type.tensor_type.shape.SetInParent()  # a scalar has a shape too
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, dict(metadata))


def _without_wrapper(name: str) -> str:
    for wrapped, bare in ((f"{INNER}.", ""), (f"/{INNER}/", "/"), (f"{INNER}/", "")):
        name = name.replace(wrapped, bare, 1)
    return name


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and those inside its control-flow nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs) if attribute.type in (attribute.GRAPH, attribute.GRAPHS) else ():
                yield from _graphs(inner)


def _restore_parameters(graph: onnx.GraphProto) -> None:
    held = {tensor.name: tensor for tensor in graph.initializer}
    outputs = {value.name for value in graph.output}
    for position in reversed(range(len(graph.node))):
        node = graph.node[position]
        if node.op_type == "Identity" and node.input[0] in held and node.output[0] not in outputs:
            own = graph.initializer.add()
            own.CopyFrom(held[node.input[0]])
            own.name = node.output[0]
            del graph.node[position]


def _rename(graph: onnx.GraphProto, new: Callable[[str], str]) -> None:
    for node in graph.node:
        node.name = new(node.name)
        node.input[:] = [new(name) for name in node.input]
        node.output[:] = [new(name) for name in node.output]
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = new(value.name)
