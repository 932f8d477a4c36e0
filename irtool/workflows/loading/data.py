"""The data options, and what the model says about the data that it takes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onnx import TensorProto
from torch import nn

from irtool.archive import read_info
from irtool.atomic_files import parse_json
from irtool.errors import DataError, FileError, IrtoolError, OptionError
from irtool.hosts.onnx.files.file import declared_shapes, read_description
from irtool.ir.graph import Graph
from irtool.progress import Reporter
from irtool.train import Data, Preprocessing, load_data
from irtool.train.data.image_files import SUFFIXES
from irtool.train.data.preprocessing import LARGEST_SIDE
from irtool.workflows.loading.models import Shape, onnx_file, saved_model
from irtool.workflows.loading.spec import ModelSpec

TRACE_BATCH = 2
"""Samples in the example: with one alone `torch.export` takes the batch for a constant."""


@dataclass(frozen=True)
class Wanted:
    """Normalisation, channels and (height, width) as far as they are known."""

    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    channels: int | None
    size: tuple[int, int] | None


@dataclass(frozen=True)
class DataOptions:
    """`--data` and its company, as given."""

    source: str | None = None
    mean: str | None = None
    std: str | None = None
    limit: int | None = None
    image_size: int | tuple[int, int] | None = None
    last: bool = False
    """Whether what follows can give a model images with the channels last."""

    def load(self, model: str | nn.Module | Graph, reporter: Reporter) -> Data | None:
        """The dataset, with as many channels as the model's first convolution reads; None if none is asked for.

        Raises:
            DataError: missing, empty, damaged.
            OptionError: a mean, std, limit or size that can never work.
        """
        if self.source is None:
            return None
        _refuse_image(Path(self.source))
        wanted = self.wanted(model)
        return load_data(
            self.source,
            mean=wanted.mean,
            std=wanted.std,
            limit=self.limit,
            image_size=wanted.size,
            channels=wanted.channels,
            progress=reporter,
        )

    def wanted(self, model: str | nn.Module | Graph) -> Wanted:
        """Join what the options and the model say about images.

        Raises:
            OptionError: a mean, std or size that can never work, or a model that takes no such images.
        """
        mean, std = _numbers(self.mean, "--mean"), _numbers(self.std, "--std")
        if self.limit is not None and self.limit < 1:
            raise OptionError(f"{self.limit} images", where="--limit", remedy="Give at least 1, or leave it out for all.")
        file = onnx_file(model) if isinstance(model, str) else None
        known, size = _image_of(file, last=self.last) if file is not None else (_channels(model), None)
        if file is not None and _takes_pixels(file):
            if mean is not None or std is not None:
                remedy = "Leave it out: the model prepares its pixels itself."
                raise OptionError("the model takes pixels from 0 to 255", where="--mean" if mean is not None else "--std", remedy=remedy)
            mean, std = (0.0,) * (known or 3), (1 / 255,) * (known or 3)
        if self.image_size is not None:
            size = (self.image_size, self.image_size) if isinstance(self.image_size, int) else self.image_size
            if not all(1 <= side <= LARGEST_SIDE for side in size):
                raise OptionError(
                    f"{self.image_size} pixels", where="--image-size", remedy=f"Give 1 to {LARGEST_SIDE:,}: larger images fit no memory."
                )
        return Wanted(mean, std, len(mean or std or ()) or known, size)

    def require_source(self) -> None:
        """Refuse words about images where there are none.

        Raises:
            OptionError: one of them; it is named.
        """
        said = next((name for name in ("mean", "std", "limit", "image_size") if getattr(self, name) is not None), None)
        if self.source is None and said is not None:
            flag = f"--{said.replace('_', '-')}"
            raise OptionError("no images that it speaks of", where=flag, remedy="Give --data too, or leave it out.")

    def record(self) -> dict[str, Any]:
        """For report.json."""
        return {"data": self.source, "limit": self.limit, "image_size": self.image_size}


def example_shapes(data: Data | None, given: Sequence[Shape], *, own_batch: bool = False) -> Sequence[Shape]:
    """The shapes to trace with: those given, else the data's, the batch left to the model if `own_batch`.

    Raises:
        OptionError: those given are not those of the images.
    """
    if data is None:
        return given
    image = data.preprocessing.input_shape
    if given and tuple(given[0][1:]) != image:
        raise OptionError(
            f"{_sizes(given[0][1:])}, but the images are {_sizes(image)}", where="--input", remedy="Leave it out, or give --image-size."
        )
    return given or [(None if own_batch else TRACE_BATCH, *image)]


def file_shapes(file: Path, image: tuple[int, ...], fixed: Collection[str] = ()) -> list[Shape]:
    """The shapes to read an ONNX file with: the images' for the input that takes them, free axes of others left to the file.

    Args:
        file: the .onnx file.
        image: (C, H, W); an input with the channels last gets (H, W, C).
        fixed: inputs that have a value and are none any more.

    Raises:
        OptionError: pictures have not the channels of that input.
    """
    shapes = {name: shape for name, shape in declared_shapes(read_description(file)).items() if name not in fixed}
    place = _image_input(shapes)
    found: list[Shape] = []
    for name, shape in shapes.items():
        if shape is not None and name == place:
            channels = shape[3] if _is_last(shape) else shape[1]
            if channels not in (None, image[0]):
                remedy = "Give its inputs as they are: --calib FILE.npy, with one a row."
                raise OptionError(
                    f"takes images of {channels} channels, and pictures have {image[0]}", where=f"{file}: {name}", remedy=remedy
                )
            found.append((None, *((*image[1:], image[0]) if _is_last(shape) else image)))
        else:
            found.append((None,) * len(shape or ()))
    return found


def _image_input(shapes: Mapping[str, Sequence[int | None] | None]) -> str | None:
    """The first input of four axes that is higher and wider than one pixel."""
    for name, shape in shapes.items():
        if shape is not None and len(shape) == 4:
            sides = shape[1:3] if _is_last(shape) else shape[2:]
            if 1 not in sides:
                return name
    return None


def _sizes(shape: Shape) -> str:
    return "x".join(map(str, shape))


def _image_of(file: Path, *, last: bool = False) -> tuple[int | None, tuple[int, int] | None]:
    """How many channels an ONNX file's input of images has (None unless 1 or 3), and its height and width if they are fixed."""
    shapes = declared_shapes(read_description(file))
    shape = shapes.get(_image_input(shapes) or "")
    if shape is None:
        return None, None
    _, channels, height, width = shape
    if _is_last(shape):
        if not last:
            raise OptionError(
                f"takes images with the channels last (N, H, W, {width}); irtool gives them first (N, C, H, W)",
                where=str(file),
                remedy="Export the model with NCHW inputs.",
            )
        channels, height, width = width, channels, height
    return channels if channels in (1, 3) else None, (height, width) if height is not None and width is not None else None


def _takes_pixels(file: Path) -> bool:
    """Whether an ONNX file's input of images is of bytes."""
    model = read_description(file)
    name = _image_input(declared_shapes(model))
    kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    return kinds.get(name or "") == TensorProto.UINT8


def _is_last(shape: Sequence[int | None]) -> bool:
    return len(shape) == 4 and shape[3] in (1, 3) and shape[1] not in (1, 3)


def _refuse_image(source: Path) -> None:
    if source.suffix.lower() in SUFFIXES and source.is_file():
        raise DataError("is one image", where=str(source), remedy="Give the folder that it lies in, or a zip of it.")


def _channels(model: str | nn.Module | Graph) -> int | None:
    """1 or 3, if the model's first convolution takes so many; None if it cannot be told."""
    if isinstance(model, Graph):
        sizes = model.inputs[0].sizes
        return sizes[1] if len(sizes) == 4 and sizes[1] in (1, 3) else None
    if isinstance(model, str):
        if Path(model).exists() and not model.endswith(".py"):
            return None
        try:
            model = ModelSpec.parse(model).build()
        except IrtoolError:
            return None  # building it for tracing will say what is wrong
    first = next((child for child in model.modules() if isinstance(child, nn.Conv1d | nn.Conv2d | nn.Conv3d)), None)
    return first.in_channels if first is not None and first.in_channels in (1, 3) else None


def _numbers(text: str | None, option: str) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        found = tuple(float(part) for part in text.replace("(", "").replace(")", "").split(","))
    except ValueError:
        found = ()
    if len(found) not in (1, 3):
        raise OptionError(f"cannot read {text!r}", where=option, remedy="Write three numbers (one for grey images): 0.4914,0.4822,0.4465.")
    if not all(0 <= value <= 1 for value in found):  # NaN is not, either
        raise OptionError(
            f"{text!r} is not from 0 to 1", where=option, remedy="Black is 0 and white is 1: divide numbers of pixels by 255."
        )
    return found


def known_preprocessing(model: str, given: DataOptions) -> DataOptions:
    """The data options, completed by what a saved model or an ONNX file says about the images that it was trained on."""
    known = stored_preprocessing(model)
    if known is None:
        return given
    texts = [",".join(map(repr, values)) for values in (known.mean, known.std)]
    return replace(given, mean=given.mean or texts[0], std=given.std or texts[1], image_size=given.image_size or known.size)


def stored_preprocessing(model: str) -> Preprocessing | None:
    """Read what a saved model or an ONNX file says about its input; None if it says nothing or is no file."""
    path = saved_model(model)
    if path is None:
        return None
    if path.suffix == ".onnx":
        held = {entry.key: entry.value for entry in read_description(path).metadata_props}
        plain = _parsed(held["irtool.preprocessing"], path) if "irtool.preprocessing" in held else None
    else:
        plain = read_info(path).preprocessing
    return Preprocessing.from_dict(plain) if plain else None


def _parsed(text: str, path: Path) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        remedy = "Remove the entry irtool.preprocessing from its metadata, and give --mean and --std."
        raise FileError(f"its preprocessing is no JSON ({error})", where=str(path), remedy=remedy) from error
