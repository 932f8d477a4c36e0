"""The text of an ncnn model: a `.param` file, which names layers and blobs; the weights are in the `.bin` file beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from irtool.atomic_files import read_text
from irtool.errors import FileError

MAGIC = "7767517"
_AXES = {1: ("0",), 2: ("1", "0"), 3: ("2", "1", "0"), 4: ("2", "11", "1", "0")}
"""By the rank of one sample: the keys in which an `Input` layer states its sizes, in the order of the axes."""
_REMEDY = "Export it again, or give the .param file of an ncnn model."


@dataclass(frozen=True)
class Layer:
    """One line of the file.

    Attributes:
        kind: ncnn's name of the operator.
        name: of the layer.
        inputs, outputs: names of blobs.
        options: the rest of the line, as `0=16`.
    """

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    options: tuple[str, ...]

    def __str__(self) -> str:
        counts = (str(len(self.inputs)), str(len(self.outputs)))
        return " ".join((self.kind, self.name, *counts, *self.inputs, *self.outputs, *self.options))

    @property
    def sample(self) -> tuple[int, ...] | None:
        """The shape of one sample that an `Input` layer states; None if it states none."""
        sizes = dict(option.split("=", 1) for option in self.options if "=" in option)
        axes = next((keys for _, keys in sorted(_AXES.items(), reverse=True) if set(keys) <= sizes.keys()), None)
        return None if axes is None else tuple(int(sizes[key]) for key in axes)


def read_param(path: Path) -> tuple[Layer, ...]:
    """Read the layers of a file, in order.

    Raises:
        FileError: it is no such file, or a truncated one.
    """
    try:
        lines = read_text(path).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FileError("not an ncnn model", where=str(path), remedy=_REMEDY) from error
    try:
        layers, _ = map(int, lines[1].split())
        if lines[0].strip() != MAGIC or layers < 1:
            raise ValueError
        found = tuple(_layer(line.split()) for line in lines[2:] if line.strip())
        for layer in found:
            if layer.kind == "Input" and len(layer.outputs) != 1:
                raise ValueError
            _ = layer.sample if layer.kind == "Input" else None  # its sizes are numbers
    except (ValueError, IndexError) as error:
        raise FileError("not an ncnn model, or a truncated one", where=str(path), remedy=_REMEDY) from error
    if len(found) != layers:
        raise FileError(f"{len(found)} of its {layers} layers are there", where=str(path), remedy="It is truncated: export it again.")
    return found


def _layer(words: Sequence[str]) -> Layer:
    reads, writes = int(words[2]), int(words[3])
    names = words[4 : 4 + reads + writes]
    if len(names) != reads + writes:
        raise ValueError
    return Layer(words[0], words[1], tuple(names[:reads]), tuple(names[reads:]), tuple(words[4 + reads + writes :]))


def write_param(layers: Sequence[Layer], path: Path) -> None:
    """Write layers as a file."""
    blobs = {name for layer in layers for name in layer.outputs}
    path.write_text("\n".join((MAGIC, f"{len(layers)} {len(blobs)}", *map(str, layers))) + "\n", encoding="utf-8")


def renamed(layers: Sequence[Layer], names: Mapping[str, str], samples: Mapping[str, tuple[int, ...]]) -> tuple[Layer, ...]:
    """Give blobs other names, and let `Input` layers state the shape of one sample.

    Args:
        layers: of a file.
        names: new names by old ones; blobs that it leaves out keep theirs.
        samples: shapes by new name.
    """
    found = []
    for layer in layers:
        inputs, outputs = (tuple(names.get(name, name) for name in some) for some in (layer.inputs, layer.outputs))
        options = layer.options
        if layer.kind == "Input":
            sizes = samples[outputs[0]]
            options = tuple(f"{key}={size}" for key, size in zip(_AXES[len(sizes)], sizes, strict=True))
        found.append(replace(layer, inputs=inputs, outputs=outputs, options=options))
    return tuple(found)
