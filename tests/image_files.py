"""Small image datasets of known colours, as folders and zips."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

from PIL import Image


def png(color: tuple[int, int, int], size: tuple[int, int] = (8, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "PNG")
    return buffer.getvalue()


def tree(splits: tuple[str, ...] = ("train", "test"), classes: tuple[str, ...] = ("cat", "dog"), each: int = 5) -> dict[str, bytes]:
    """Files by name. The red value tells the class, the green one the image."""
    return {
        "/".join(filter(None, (split, label, f"{number:02}.png"))): png((100 * index, 10 * number, 50))
        for split in splits
        for index, label in enumerate(classes)
        for number in range(each)
    }


def folder(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def archive(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, content in files.items():
            file.writestr(name, content)
    return path
