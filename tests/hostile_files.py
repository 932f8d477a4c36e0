"""Plans, recipes, reports and zips of images that ask for too much or name what is not theirs: each function writes one."""

from __future__ import annotations

import json
import os
import struct
import zipfile
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from image_files import png, tree

DEEP = 100_000
Maker = Callable[[Path], Path]
SPY = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\ndef make(**options): Path(__file__).with_name('ran').touch()\n"
"""A module that leaves a mark when it is imported."""

# --- JSON texts that no reader may fall over ----------------------------------------------------------------------------

JSON: dict[str, Callable[[], bytes]] = {
    "lists in lists": lambda: b"[" * DEEP + b"]" * DEEP,
    "objects in objects": lambda: b'{"layers":' * DEEP + b"1" + b"}" * DEEP,
    "unfinished": lambda: b'{"format": 1, "layers": [',
    "a number of many digits": lambda: b'{"format": ' + b"9" * 1_000_000 + b"}",
    "not a number": lambda: b'{"format": NaN, "layers": Infinity}',
    "no UTF-8": lambda: b"\xff\xfe\x00{",
    "half a surrogate": lambda: b'{"format": "\\ud800"}',
    "empty": lambda: b"",
    "a list": lambda: b"[]",
    "a text": lambda: b'"format"',
    "nothing": lambda: b"null",
    "named twice": lambda: b'{"format": 1, "format": 2}',
}


def long_file(path: Path, size: int = 3 << 30) -> Path:
    """A file of zeros that takes no room."""
    path.touch()
    os.truncate(path, size)
    return path


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def json_file(name: str, path: Path) -> Path:
    path.write_bytes(JSON[name]())
    return path


# --- recipes ------------------------------------------------------------------------------------------------------------

STEP = '[[step]]\ndo = "fold"\n'
RECIPES: dict[str, str] = {
    "lists in lists": f"model = {'[' * DEEP}{']' * DEEP}\n",
    "tables in tables": f"model = {'{a=' * DEEP}1{'}' * DEEP}\n",
    "a long dotted key": f"{'a.' * DEEP}b = 1\n",
    "a long dotted table": f"[{'a.' * DEEP}b]\n",
    "many tables": "".join(f"[t{number}]\n" for number in range(50_000)),
    "many steps": STEP * 40_000,
    "a number of many digits": f"model = {'9' * 100_000}\n",
    "an unfinished text": 'model = """' + "a" * 100_000,
    "a step of code": 'model = "VGG:depth=11"\ndata = "digits"\n[[step]]\ndo = "os:system"\n',
    "a step of a private name": 'model = "VGG:depth=11"\ndata = "digits"\n[[step]]\ndo = "__class__"\n',
    "a step with a path": 'model = "VGG:depth=11"\ndata = "digits"\n[[step]]\ndo = "fold"\nname = "../../out"\n',
    "a step with a root": 'model = "VGG:depth=11"\ndata = "digits"\n[[step]]\ndo = "fold"\nname = "/etc"\n',
}
CODE_RECIPE = 'model = "{place}:make"\ndata = "digits"\n[[step]]\ndo = "fold"\n'
"""What is sound, and names code: it is read without running it."""

# --- reports ------------------------------------------------------------------------------------------------------------


def report(**changes: Any) -> dict[str, Any]:
    """A report as `irtool compress` writes it, as far as readers look at it."""
    source = {"model": "VGG:depth=11,width=0.0625", "weights": None, "data": None, "limit": None, "image_size": None}
    made: dict[str, Any] = {
        "format": 1,
        "source": {**source, "inputs": [[2, 3, 32, 32]], "fingerprint": "0"},
        "options": {"constants": "absorb", "calibrate": 0, "reconstruct": 0},
        "preprocessing": None,
        "files": {"model": "model.safetensors", "onnx": "model.onnx", "mnn": "model.mnn"},
    }
    for key, value in changes.items():
        table, _, name = key.partition("__")
        if name:
            made[table] = {**made[table], name: value}
        else:
            made[table] = value
    return made


MALFORMED: dict[str, dict[str, Any]] = {
    "no source": report(source=None),
    "a source of another kind": report(source=[1]),
    "options of another kind": report(options="absorb"),
    "files of another kind": report(files=3),
    "a model of another kind": report(source__model=["VGG"]),
    "a model with a zero in its name": report(source__model="VGG\0"),
    "weights of another kind": report(source__weights={"a": 1}),
    "inputs without sizes": report(source__inputs="1x3x32x32"),
    "inputs below nothing": report(source__inputs=[[-1, 3, 32, 32]]),
    "inputs that fit no memory": report(source__inputs=[[1, 3, 10**6, 10**6]]),
    "inputs of many axes": report(source__inputs=[[1] * 1000]),
    "very many inputs": report(source__inputs=[[1, 3, 1 << 13, 1 << 13]] * 100),
    "a fingerprint of another kind": report(source__fingerprint=[]),
    "constants of another kind": report(options__constants="../x"),
    "a count below nothing": report(options__calibrate=-1),
    "a very large count": report(options__reconstruct=10**30),
    "preprocessing of another kind": report(preprocessing=[0.5]),
    "a mean of another kind": report(preprocessing={"mean": "0.5", "std": [1]}),
}  # fmt: skip
"""Refused, since a field is not of its kind."""
CODE = ["os:system:command='touch ran'", "spy:make", "spy.py:make", "{folder}/spy.py:make", "torchvision.models:_api.inspect.sys.exit",
        "builtins:exec:object='open(1)'", "importlib:import_module:name=spy", "timm:create_model", "torch.hub:load:repo_or_dir=a"]  # fmt: skip
"""Models that a report may not have run."""


UNSOUND = ["VGG:depth={[]:1}", f"VGG:depth={'(' * 300}", f"VGG:depth={'-' * 3000}1", "VGG:depth=11,width=1e5", "VGG:depth=" + "9" * 4000,
           "torchvision.models:mobilenet_v2:width_mult=100000", "torchvision.models:vit_b_16:image_size=32000",
           "torchvision.models:mobilenet_v2:inverted_residual_setting=[[1,16,1000000000,1]]",
           "torchvision.models:resnet18:weights=DEFAULT", "torchvision.models:resnet18:pretrained=True", "a/" * 2000, "/dev/zero", "."]  # fmt: skip
"""Models that a report may not have built."""


def write_json(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path


# --- zips of images -----------------------------------------------------------------------------------------------------


def zip_of(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in {**tree(), **files}.items():
            archive.writestr(name, content)
    return path


@cache
def _zeros(size: int) -> tuple[bytes, int]:
    """Zeros as deflate packs them, and their CRC: a block of 16 MiB, repeated."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(1 << 24)) + packer.flush(zlib.Z_FULL_FLUSH)
    check = 0
    for _ in range(size >> 24):
        check = zlib.crc32(bytes(1 << 24), check)
    return block * (size >> 24) + packer.flush(), check


def bomb(path: Path, size: int = 3 << 30, told: int | None = None, check: int | None = None) -> Path:
    """An image that inflates to 3 GiB, of which the zip tells another size and CRC if they are given."""
    packed, true_check = _zeros(size)
    name = b"train/cat/bomb.png"
    fields = struct.pack(
        "<5H3L2H", 20, 0, 8, 0, 33, true_check if check is None else check, len(packed), size if told is None else told, len(name), 0
    )
    zip_of(path, {})
    content = path.read_bytes()
    directory = content.index(b"PK\1\2")
    end = content.rindex(b"PK\5\6")
    local = b"PK\3\4" + fields + name + packed
    entry = b"PK\1\2\x14\0" + fields + struct.pack("<3H2L", 0, 0, 0, 0, directory) + name
    count = struct.unpack_from("<H", content, end + 10)[0] + 1
    body = content[:directory] + local + content[directory:end] + entry
    tail = struct.pack("<4H2LH", 0, 0, count, count, len(body) - directory - len(local), directory + len(local), 0)
    path.write_bytes(body + b"PK\5\6" + tail)
    return path


def many_entries(path: Path, count: int) -> Path:
    """A zip whose list names one small file so many times."""
    name = b"a.png"
    entry = b"PK\1\2\x14\0" + struct.pack("<5H3L5H2L", 20, 0, 0, 0, 33, 0, 0, 0, len(name), 0, 0, 0, 0, 0, 0) + name
    length = len(entry) * count
    with path.open("wb") as file:
        for begin in range(0, count, 100_000):
            file.write(entry * min(100_000, count - begin))
        file.write(b"PK\6\6" + struct.pack("<Q2H2L4Q", 44, 45, 45, 0, 0, count, count, length, 0))
        file.write(b"PK\6\7" + struct.pack("<LQL", 0, length, 1))
        file.write(b"PK\5\6" + struct.pack("<4H2LH", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0))
    return path


def lying(path: Path) -> Path:
    """The same, of which the zip says that it has a hundred bytes, and the CRC of a hundred zeros."""
    return bomb(path, told=100, check=zlib.crc32(bytes(100)))


def large_picture(width: int, height: int) -> bytes:
    """A PNG whose header speaks of many pixels."""
    made = bytearray(png((1, 2, 3)))
    made[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    made[29:33] = zlib.crc32(made[12:29]).to_bytes(4, "big")
    return bytes(made)


ZIPS: dict[str, Maker] = {
    "a bomb": bomb,
    "a bomb that lies": lying,
    "a huge picture": lambda path: zip_of(path, {"train/cat/a.png": large_picture(1 << 20, 1 << 20)}),
    "a tall picture": lambda path: zip_of(path, {"train/cat/a.png": large_picture(1, 1 << 30)}),
    "a name above": lambda path: zip_of(path, {"../train/cat/a.png": png((1, 2, 3))}),
    "a name at the root": lambda path: zip_of(path, {"/train/cat/a.png": png((1, 2, 3))}),
    "a name of a drive": lambda path: zip_of(path, {"C:\\train\\a.png": png((1, 2, 3))}),
    "a picture that is a program": lambda path: zip_of(path, {"train/cat/a.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"}),
    "another method": lambda path: zip_of(path, {"train/cat/a.png": png((1, 2, 3))}, zipfile.ZIP_LZMA),
    "no zip": lambda path: long_file(path, 1000),
    "3 GiB of zeros": long_file,
    "a pipe": pipe,
}
"""Refused, each with one line."""
