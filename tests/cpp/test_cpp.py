"""The C++ runner, built with the sanitizers: the same numbers as Python, and one line for whatever is wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from cpp_runner import CLASSES, PREPROCESSING, Runner, by_python, numbers, refused


@pytest.mark.parametrize("model", ["float", "int8"])
def test_logits_are_those_of_python(runner: Runner, models: Path, pictures: Path, model: str) -> None:
    expected = by_python(models / f"{model}.mnn", pictures)
    for batch in ("1", "7"):
        got = numbers(runner(models / f"{model}.mnn", pictures, "--raw", "--batch", batch))
        assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


def test_the_likeliest_classes_as_text_and_as_json(runner: Runner, models: Path, pictures: Path, tmp_path: Path) -> None:
    listing = tmp_path / "list.txt"
    names = ["0_small.jpg", "1_large.jpg"]
    listing.write_text("".join(f"{pictures / name}\n\n" for name in names))
    raw = numbers(runner(models / "float.mnn", listing, "--raw"))
    shares = torch.from_numpy(raw).softmax(1).numpy()
    done = runner(models / "float.mnn", listing, "--json", "--top", "3")
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [Path(entry["image"]).name for entry in found] == names
    for entry, row in zip(found, shares, strict=True):
        order = np.argsort(-row, kind="stable")[:3]
        assert [top["index"] for top in entry["top"]] == order.tolist()
        assert [top["class"] for top in entry["top"]] == [CLASSES[index] for index in order]
        assert [top["share"] for top in entry["top"]] == pytest.approx(row[order].tolist(), abs=1e-6)
    text = runner(models / "float.mnn", pictures / names[0], "--top", "1").stdout
    best = int(shares[0].argmax())
    assert text == f"{pictures / names[0]}: {CLASSES[best]} {100 * shares[0][best]:.2f} %\n"
    assert runner(models / "float.mnn", pictures / names[0], "--raw", "--json").stdout.count(",") == 10


def test_the_report_of_a_folder_describes_its_model(runner: Runner, models: Path, pictures: Path, tmp_path: Path) -> None:
    shutil.copy(models / "float.mnn", tmp_path / "model.mnn")
    shutil.copy(models / "float.json", tmp_path / "report.json")
    picture = pictures / "0_wide.png"
    assert runner(tmp_path / "model.mnn", picture).stdout == runner(models / "float.mnn", picture).stdout != ""


def test_bench_prints_times(runner: Runner, models: Path, pictures: Path) -> None:
    done = runner(models / "int8.mnn", pictures, "--bench", "3", "--batch", "2", "--json")
    found = json.loads(done.stdout)
    assert (found["runs"], found["batch"], found["threads"]) == (3, 2, 1)
    assert 0 < found["least_ms"] <= found["median_ms"] <= found["p95_ms"]
    assert 0 < found["processor_ms"]
    assert re.search(r"least \d+\.\d{3} ms, processor \d+\.\d{3} ms\n$", runner(models / "int8.mnn", "--bench", "1").stdout)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "no model is given"),
        (["model.mnn"], "no image is given"),
        (["model.mnn", "--frobnicate"], "unknown option --frobnicate"),
        (["model.mnn", "a.jpg", "--top"], "--top needs a value"),
        (["model.mnn", "a.jpg", "--top", "0"], "a whole number from 1"),
        (["model.mnn", "a.jpg", "--batch", "many"], "a whole number from 1 to 4096"),
        (["model.mnn", "a.jpg", "--threads", "99999999999999999999"], "a whole number from 1 to 256"),
    ],
)
def test_a_wrong_command_line_says_so(runner: Runner, arguments: list[str], complaint: str) -> None:
    assert complaint in refused(runner(*arguments), code=2)


def test_help_has_an_example(runner: Runner) -> None:
    done = runner("--help")
    assert done.returncode == 0
    assert "Example: irtool-run" in done.stdout


Damaged = dict[str, tuple[Path, Path, str]]
"""Model, image and complaint by what is wrong."""


def _file(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _damaged_models(whole: bytes, picture: Path, folder: Path) -> Damaged:
    def file(name: str, content: bytes) -> Path:
        return _file(folder / name, content)

    def described(name: str, text: str) -> Path:
        (folder / f"{name}.json").write_text(text)
        return file(f"{name}.mnn", whole)

    plain = {"preprocessing": PREPROCESSING.to_dict()}
    altered = {key: {**plain["preprocessing"], **value} for key, value in {
        "grey": {"channels": 1, "mean": [0.5], "std": [0.5]}, "size": {"size": [64, 64]}, "std": {"std": [1, 0, 1]}, "short": {"mean": [0.5]},
        "order": {"color_order": "BGR"}, "infinite": {"mean": [0.5, 1e999, 0.5]},
    }.items()}  # fmt: skip
    return {
        "no model": (folder / "none.mnn", picture, "cannot be read (No such file"),
        "a folder": (folder, picture, "is a folder"),
        "an empty model": (file("nothing.mnn", b""), picture, "is empty"),
        "a foreign model": (file("foreign.mnn", b"PK\3\4" + bytes(500)), picture, "is no MNN model"),
        "half a model": (file("half.mnn", whole[: len(whole) // 2]), picture, "is no MNN model"),
        "no description": (file("alone.mnn", whole), picture, "there is no alone.json and no report.json beside it. Give one with --meta"),
        "half a description": (described("cut", json.dumps(plain)[:40]), picture, "not JSON at byte 40"),
        "another description": (described("other", "[1, 2]"), picture, 'has no "preprocessing"'),
        "a deep description": (described("deep", "[" * 100000), picture, "nested too deeply"),
        "wrong channels": (described("grey", json.dumps({"preprocessing": altered["grey"]})), picture, "takes 3 channels"),
        "a wrong size": (described("size", json.dumps({"preprocessing": altered["size"]})), picture, "takes 32x32 pixels"),
        "a std of 0": (described("std", json.dumps({"preprocessing": altered["std"]})), picture, "stds positive"),
        "too few means": (described("short", json.dumps({"preprocessing": altered["short"]})), picture, "one mean and one std a channel"),
        "an infinite mean": (described("infinite", '{"preprocessing": {"mean": [1e999, 0, 0], "std": [1, 1, 1], "size": [32, 32], "channels": 3}}'), picture, "finite"),
        "BGR": (described("order", json.dumps({"preprocessing": altered["order"]})), picture, "only RGB is known"),
    }  # fmt: skip


def _png(width: int, height: int, content: bytes) -> bytes:
    """A grey PNG of a size, whose data inflate to something else."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(content, 9)) + chunk(b"IEND", b"")


def _damaged_images(model: Path, jpeg: bytes, png: bytes, folder: Path) -> Damaged:
    def file(name: str, content: bytes) -> Path:
        return _file(folder / name, content)

    (folder / "empty").mkdir()
    return {
        "no image": (model, folder / "none.jpg", "cannot be read"),
        "an empty image": (model, file("nothing.jpg", b""), "is empty"),
        "a foreign image": (model, file("text.jpg", b"hello, world"), "neither JPEG nor PNG"),
        "half a JPEG": (model, file("half.jpg", jpeg[:-60]), "cut off"),
        "a JPEG's head": (model, file("head.jpg", jpeg[:20]), "cannot be decoded"),
        "half a PNG": (model, file("half.png", png[: len(png) // 2]), "cannot be decoded"),
        "a huge PNG": (model, file("huge.png", png[:16] + b"\x7f\xff\xff\xff" * 2 + png[24:]), "too many pixels"),
        "a wide PNG": (model, file("wide.png", _png(16000, 16000, b"")), "too many pixels"),
        "a PNG that inflates to more than its size": (model, file("bomb.png", _png(8, 8, bytes(1 << 26))), "more than its size has room for"),
        "an empty folder": (model, folder / "empty", "holds no .jpg"),
        "an empty list": (model, file("list.txt", b"\n \n"), "names no image"),
        "a list of nothing": (model, file("lost.txt", b"none.jpg\n"), "none.jpg: cannot be read"),
    }  # fmt: skip


def test_whatever_is_wrong_with_a_file_is_said_in_one_line(runner: Runner, models: Path, pictures: Path, tmp_path: Path) -> None:
    model, picture, png = models / "float.mnn", pictures / "0_small.jpg", (pictures / "0_small.png").read_bytes()
    damaged = _damaged_models(model.read_bytes(), picture, tmp_path) | _damaged_images(model, picture.read_bytes(), png, tmp_path)
    for name, (model, picture, complaint) in damaged.items():
        assert complaint in refused(runner(model, picture)), name


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(runner: Runner, models: Path, pictures: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.jpg"
    shutil.copy(pictures / "0_small.jpg", secret)
    secret.chmod(0)
    assert "Permission denied" in refused(runner(models / "float.mnn", secret))


def test_damaged_bytes_never_crash_it(runner: Runner, models: Path, pictures: Path, tmp_path: Path) -> None:
    draw = np.random.default_rng(7)
    victims = [models / "float.mnn"] * 12 + [pictures / "0_small.jpg"] * 8 + [pictures / "0_palette.png"] * 8 + [models / "float.json"] * 6
    for number, victim in enumerate(victims):
        content = bytearray(victim.read_bytes())
        reach = min(len(content), 4000) if victim.suffix == ".mnn" else len(content)  # weights are most of a model, and harmless
        for at in draw.integers(0, reach, 1 + number % 4):
            content[at] = draw.integers(0, 256)
        hurt = tmp_path / f"{number}{victim.suffix}"
        hurt.write_bytes(content)
        model = hurt if victim.suffix == ".mnn" else models / "float.mnn"
        description = hurt if victim.suffix == ".json" else models / "float.json"
        picture = hurt if victim.suffix in (".jpg", ".png") else pictures / "0_small.jpg"
        done = runner(model, picture, "--meta", description)
        assert done.returncode in (0, 1), (number, done.returncode, done.stderr)
        assert "Sanitizer" not in done.stderr, done.stderr
        assert done.stderr.count("\n") == done.returncode
