"""Image files of unusual kinds, and what tells that a dataset was changed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from image_files import archive, folder, tree
from PIL import Image

from irtool.errors import DataError
from irtool.train import load_data
from irtool.train.data.image_files import FolderTree, content_of, decode


@pytest.mark.parametrize(("suffix", "mode"), [("png", "I;16"), ("tiff", "I;16"), ("tiff", "I;16B"), ("tiff", "I")])
def test_grey_images_of_16_bits_keep_their_high_byte(suffix: str, mode: str, tmp_path: Path) -> None:
    values = np.array([[0, 128, 129, 257], [32768, 65535, 65406, 65407]])
    kinds = {"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}
    image = Image.frombytes(mode, (4, 2), values.astype(kinds[mode]).tobytes())
    for label in "ab":
        (tmp_path / label).mkdir()
        image.save(tmp_path / label / f"0.{suffix}")
    assert Image.open(tmp_path / "a" / f"0.{suffix}").mode == mode
    for channels in (None, 1, 3):
        pixels = decode(FolderTree(tmp_path), f"a/0.{suffix}", channels, None)
        assert pixels.tolist() == [[[0, 0, 0, 1], [128, 255, 255, 255]]] * (channels or 1)


@pytest.mark.parametrize(("mode", "value"), [("F", 0.5), ("I", 65536), ("I", -1)])
def test_pixels_without_a_known_range_are_refused(mode: str, value: float, tmp_path: Path) -> None:
    Image.new(mode, (2, 2), value).save(tmp_path / "0.tiff")  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"0.tiff: cannot be read .*no numbers from 0 to 65535: save it with 8 or 16 bits"):
        decode(FolderTree(tmp_path), "0.tiff", None, None)


def test_a_pipe_among_the_images_is_not_waited_for(tmp_path: Path) -> None:
    source = folder(tmp_path / "data", tree())
    os.mkfifo(source / "train" / "cat" / "pipe.png")
    with pytest.raises(DataError, match=r"pipe.png: is no regular file. Remove it"):
        load_data(source)


def test_content_is_told_by_names_sizes_and_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = tree()
    a, b = folder(tmp_path / "a", files), folder(tmp_path / "b", files)
    os.mkfifo(b / "train" / "cat" / "pipe.png")
    (b / ".hidden").touch()
    assert content_of(a) == content_of(b)
    first = next(iter(files))
    same_size = files[first][:-1] + b"x"
    (b / first).write_bytes(same_size)
    assert content_of(a) != content_of(b)
    monkeypatch.setattr("irtool.train.data.image_files.READ_LIMIT", 10)
    assert content_of(a) == content_of(b)  # too much to be read
    (b / first).rename((b / first).with_name("other.png"))
    assert content_of(a) != content_of(b)
    assert content_of(archive(tmp_path / "a.zip", files)).startswith("1 file of ")
