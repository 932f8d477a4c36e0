"""Trees of image files: a folder, or a zip read in place. Nothing is ever unpacked, so no archive can write anywhere."""

from __future__ import annotations

import io
import os
import re
import stat
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from irtool.errors import DataError
from irtool.extras import needed

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif"})
SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test", "val": "val", "valid": "val", "validation": "val"}
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM", "TIFF", "GIF")
"""Image formats that are tried on a file, whatever its name. Pillow knows more: it hands PostScript to a program."""
READ_LIMIT = 1 << 28
"""Bytes of one file."""
MOST_PIXELS, MOST_SIDE = 1 << 26, (1 << 16) - 1
"""Most pixels and longest side of an image: a few kilobytes may stand for billions of pixels, and a single column for a huge scaled one."""
LARGEST_DIRECTORY, MOST_ENTRIES = 1 << 28, 2_000_000
"""Most bytes of a zip's list of files, and most files: both are held in memory."""
MOST_FOLDERS = 200_000
"""Folders in a tree; links may lead to the same ones again and again."""
LAYOUT = "Expected train/<class>/*.jpg and test/<class>/*.jpg, or <class>/*.jpg to be split here."


class FileTree(Protocol):
    """Named blobs. `where` names one of them for an error message."""

    def names(self) -> list[str]: ...
    def read(self, name: str) -> bytes: ...
    def where(self, name: str) -> str: ...


class FolderTree:
    """The image files below a folder, by their paths relative to it (with forward slashes)."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self) -> list[str]:
        """Sorted, so that the same folder gives the same order on every machine."""
        return [name for name in self.files() if _is_image(name)]

    def files(self) -> list[str]:
        """All files, images or not. Sorted."""
        found: list[str] = []
        for count, (folder, _, files) in enumerate(os.walk(self.root, followlinks=True)):
            if count == MOST_FOLDERS:
                raise DataError(
                    f"more than {count:,} folders", where=str(self.root), remedy="Look for links that lead back into it, and remove them."
                )
            found += (Path(folder, file).relative_to(self.root).as_posix() for file in files)
        return sorted(found)

    def read(self, name: str) -> bytes:
        path = self.root / name
        try:
            found = path.stat()
            if not stat.S_ISREG(found.st_mode):  # a pipe would be waited for
                raise DataError("is no regular file", where=self.where(name), remedy="Remove it, or give its name another ending.")
            if found.st_size > READ_LIMIT:
                raise _too_long(found.st_size, self.where(name))
            return path.read_bytes()
        except OSError as error:
            raise DataError(f"cannot read ({error.strerror})", where=self.where(name), remedy="Check that the file is readable.") from error

    def where(self, name: str) -> str:
        return str(self.root / name)


class _ZipFile(io.BufferedReader):
    """A zip's bytes. `zipfile` reads the whole list of files by one call, and makes an object of each: here both are bounded before."""

    def __init__(self, path: Path) -> None:
        self.is_listed = False
        super().__init__(io.FileIO(path))

    def read(self, size: int | None = -1, /) -> bytes:
        if self.is_listed:
            return super().read(size)
        length = LARGEST_DIRECTORY + 1 if size is None or size < 0 else size
        found = super().read(min(length, LARGEST_DIRECTORY + 1))
        if len(found) > LARGEST_DIRECTORY or found.count(b"PK\1\2") > MOST_ENTRIES:
            remedy = "Give an unzipped folder, or a zip of the images alone."
            raise DataError(f"a zip of more than {MOST_ENTRIES:,} files", where=str(self.name), remedy=remedy)
        return found


class ZipTree:
    """The image files of a zip archive. May be read from several threads.

    Raises:
        DataError: not a zip, truncated, or holding a name that points outside the archive.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            file = _ZipFile(path)
            self._archive = zipfile.ZipFile(file)
            file.is_listed = True
        except (zipfile.BadZipFile, OSError, EOFError) as error:
            raise DataError(
                f"not a complete zip file ({error})",
                where=str(path),
                remedy="It may be truncated: download or copy it again, or give an unzipped folder.",
            ) from error

    def names(self) -> list[str]:
        names = self._archive.namelist()
        for name in names:
            if name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", name) or re.match(r"^[A-Za-z]:", name):
                raise DataError(
                    f"unsafe name in the archive: {name!r}",
                    where=str(self.path),
                    remedy="Paths must stay inside the archive: zip the folder again, or give an unzipped folder that you trust.",
                )
        return sorted(name for name in names if _is_image(name))

    def read(self, name: str) -> bytes:
        entry = self._archive.getinfo(name)
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others are unpacked in pieces of any size
            raise DataError(
                "is packed by another method than deflate", where=self.where(name), remedy="Make the zip again, with the usual method."
            )
        if entry.file_size > READ_LIMIT:
            raise _too_long(entry.file_size, self.where(name))
        try:
            with self._archive.open(entry) as file:
                return file.read(READ_LIMIT)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, NotImplementedError) as error:
            raise DataError(
                f"cannot unpack ({error})", where=self.where(name), remedy="The zip is damaged or encrypted: make it again."
            ) from error

    def where(self, name: str) -> str:
        return f"{self.path}:{name}"


def _too_long(size: int, where: str) -> DataError:
    return DataError(f"{size:,} bytes: no image file has more than {READ_LIMIT:,}", where=where, remedy="Remove it.")


def _is_image(name: str) -> bool:
    parts = name.split("/")
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in parts)
    return not hidden and os.path.splitext(name)[1].lower() in SUFFIXES


@dataclass(frozen=True)
class LabelledNames:
    """File names by split ("train", perhaps "test") with the class index of each, and the class names."""

    splits: dict[str, list[tuple[str, int]]]
    classes: tuple[str, ...]


def arrange(tree: FileTree, where: str) -> LabelledNames:
    """Read splits and classes off the folder names.

    Class indices are those of torchvision's ImageFolder: class names sorted. A folder that wraps everything (as zips
    have) is looked through. Where a "test" and a "val" split both exist, "test" is used.

    Raises:
        DataError: no images, no class folders, fewer than two classes, or a split with other classes than the rest.
    """
    pairs = [(name, tuple(name.split("/"))) for name in tree.names()]
    if not pairs:
        raise DataError("no images found", where=where, remedy=LAYOUT)
    while len({parts[0] for _, parts in pairs}) == 1 and pairs[0][1][0] not in SPLITS and all(len(parts) > 2 for _, parts in pairs):
        pairs = [(name, parts[1:]) for name, parts in pairs]
    if any(SPLITS.get(parts[0]) == "train" for _, parts in pairs):
        named = [(SPLITS[parts[0]], name, parts[1]) for name, parts in pairs if parts[0] in SPLITS and len(parts) > 2]
    else:
        named = [("train", name, parts[0]) for name, parts in pairs if len(parts) > 1]
    if not named:
        raise DataError("images, but no class folders", where=where, remedy=LAYOUT)
    kept = _choose_splits({split for split, _, _ in named})
    named = [(kept[split], name, label) for split, name, label in named if split in kept]
    return _index(named, where)


def _choose_splits(found: set[str]) -> dict[str, str]:
    test = next((split for split in ("test", "val") if split in found), None)
    return {"train": "train"} | ({test: "test"} if test else {})


def _index(named: list[tuple[str, str, str]], where: str) -> LabelledNames:
    by_split: dict[str, list[tuple[str, str]]] = {}
    for split, name, label in named:
        by_split.setdefault(split, []).append((name, label))
    classes = {split: {label for _, label in rows} for split, rows in by_split.items()}
    odd = sorted(set.symmetric_difference(classes["train"], classes.get("test", classes["train"])))
    if odd:
        raise DataError(
            f"train and test have different classes ({', '.join(odd[:3])})",
            where=where,
            remedy="Give both splits the same class folders.",
        )
    ordered = tuple(sorted(classes["train"]))
    if len(ordered) < 2:
        raise DataError(f"only one class ({ordered[0]})", where=where, remedy=LAYOUT)
    index = {label: number for number, label in enumerate(ordered)}
    return LabelledNames({split: [(name, index[label]) for name, label in rows] for split, rows in by_split.items()}, ordered)


def decode(tree: FileTree, name: str, channels: int | None, size: tuple[int, int] | None) -> NDArray[np.uint8]:
    """One image as uint8 (C, H, W), RGB or grey.

    Args:
        channels: 1 or 3; None takes 1 for grey files and 3 for all others.
        size: (height, width): the image is scaled to cover it (bilinear, antialiased) and centre-cropped. None keeps it.

    Raises:
        DataError: the file is no image of the `FORMATS`, is truncated, or holds more than `MOST_PIXELS`. It is named.
    """
    try:
        with needed("PIL.Image", DataError).open(io.BytesIO(tree.read(name)), formats=FORMATS) as image:
            if image.width * image.height > MOST_PIXELS or max(image.size) > MOST_SIDE:
                raise ValueError(f"{image.width} x {image.height} pixels, more than {MOST_PIXELS:,} in all or {MOST_SIDE:,} a side")
            wanted = channels or (1 if image.mode in ("1", "L") or _is_deep(image) else 3)
            plain = (_eight_bits(image) if _is_deep(image) else image).convert("L" if wanted == 1 else "RGB")
    except DataError:
        raise
    except Exception as error:  # Pillow's readers raise whatever damaged bytes lead them to
        raise DataError(
            f"cannot be read as an image ({str(error).split(' <')[0]})",
            where=tree.where(name),
            remedy="Replace the file or remove it.",
        ) from error
    if size is not None and plain.size != (size[1], size[0]):
        plain = _fitted(plain, *size)
    pixels = np.array(plain, dtype=np.uint8)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _is_deep(image: Picture) -> bool:
    """Whether it is grey, of more than 8 bits."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _eight_bits(image: Picture) -> Picture:
    """16 bits as 8 by their high byte, as the C++ runner reads them and Pillow reads colours. Pillow clips grey to white.

    Raises:
        ValueError: the values are not those of 16 bits, so that nobody knows which is white.
    """
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise ValueError("its pixels are no numbers from 0 to 65535: save it with 8 or 16 bits")
    return needed("PIL.Image").fromarray((values.astype(np.uint32) >> 8).astype(np.uint8))


def content_of(source: Path) -> str:
    """A fingerprint of the data in a file or a folder, wherever they lie: names and sizes, and a sum.

    The sum is over all that the files hold, unless that is more than `READ_LIMIT` bytes. Of a folder with images, those count.

    Raises:
        DataError: a file cannot be read.
    """
    tree = FolderTree(source if source.is_dir() else source.parent)
    names = (tree.names() or tree.files()) if source.is_dir() else [source.name]
    sizes = {name: (tree.root / name).stat().st_size for name in names if (tree.root / name).is_file()}
    total, check = sum(sizes.values()), 0
    for name, size in sizes.items():
        check = zlib.crc32(f"{name if source.is_dir() else ''} {size}".encode(errors="surrogateescape"), check)
        check = zlib.crc32(tree.read(name), check) if total <= READ_LIMIT else check
    return f"{len(sizes)} file{'s' if len(sizes) > 1 else ''} of {total:,} bytes, {check:08x}"


def _fitted(image: Picture, height: int, width: int) -> Picture:
    """Scale to cover `height` x `width` and crop the centre.

    Columns first, then rows, as two calls: which comes first in one call is up to Pillow's version, and changes pixels by one.
    The C++ runner has the same arithmetic.
    """
    have, want = image.width / image.height, width / height
    crop_width = want * image.height if have > want else image.width
    crop_height = image.width / want if have < want else image.height
    left, top = (image.width - crop_width) * 0.5, (image.height - crop_height) * 0.5
    bilinear = needed("PIL.Image").Resampling.BILINEAR
    columns = image.resize((width, image.height), bilinear, box=(left, 0, left + crop_width, image.height))
    return columns.resize((width, height), bilinear, box=(0, top, width, top + crop_height))
