"""The C++ runner, built once, with a model and pictures. Where MNN_ROOT names an SDK it is built against that, and all tests hold as well."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from cpp_runner import CLASSES, PREPROCESSING, SOURCE, Runner
from PIL import Image

import irtool
from irtool.engines.mnn.int8 import export_mnn_int8
from irtool.engines.mnn.int8_policy import MNN_POLICY
from irtool.engines.onnxruntime.calibrate import calibrate
from irtool.engines.onnxruntime.prepare import prepared
from irtool.models import VGG
from irtool.quant import Scheme, make_recipe, place

SDK = os.environ.get("MNN_ROOT", "")


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sanitized build, made once; the tests skip where its tools are absent."""
    if shutil.which("cmake") is None or shutil.which("c++") is None:
        pytest.skip("no cmake or no C++ compiler here")
    build = tmp_path_factory.mktemp("build")
    configure = ["cmake", "-S", str(SOURCE), "-B", str(build), f"-DPython={sys.executable}", f"-DMNN_ROOT={SDK}",
                 "-DSANITIZE=ON", "-DCMAKE_BUILD_TYPE=Debug"]  # fmt: skip
    done = subprocess.run(configure, capture_output=True, text=True)
    if done.returncode and "libstb-dev" in done.stderr:
        pytest.skip("stb or libjpeg is not installed here")
    assert done.returncode == 0, done.stderr
    done = subprocess.run(["cmake", "--build", str(build), "--parallel", "2"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning" not in done.stdout + done.stderr
    return build


@pytest.fixture(scope="session")
def runner(built: Path) -> Runner:
    """Run the sanitized build."""
    known = built / "known_leaks.txt"
    known.write_text("leak:MNN::Interpreter::createFromBuffer\n")  # MNN keeps a model that it refuses

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(built / "irtool-run"), *map(str, arguments)],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=900,
            env={**os.environ, "ASAN_OPTIONS": "allocator_may_return_null=1", "LSAN_OPTIONS": f"suppressions={known}:print_suppressions=0"},
        )

    return run


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with float.mnn and int8.mnn, each with its description."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models")
    graph = irtool.fold_batchnorm(irtool.trace(VGG(11, width=0.125).eval(), torch.zeros(2, 3, 32, 32)))
    irtool.export_onnx(graph, folder / "float.onnx")
    irtool.export_mnn(folder / "float.onnx", folder / "float.mnn")
    model = prepared(onnx.load(str(folder / "float.onnx")))
    placement = place(model, MNN_POLICY)
    noise = np.random.default_rng(0).normal(size=(2, 16, 3, 32, 32)).astype(np.float32)
    recipe = make_recipe(model, placement, calibrate(model, placement.tensors, noise, threads=1), Scheme("int8", symmetric=True))
    export_mnn_int8(model, recipe, folder / "int8.mnn")
    for name in ("float", "int8"):
        text = json.dumps({"preprocessing": PREPROCESSING.to_dict(), "classes": CLASSES})
        (folder / f"{name}.json").write_text(text)
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs as JPEG and PNG, in colour, grey, with alpha and with a palette, of the model's size and of others."""
    from sklearn.datasets import load_sample_images

    folder = tmp_path_factory.mktemp("pictures")
    for number, array in enumerate(load_sample_images().images):
        photo = Image.fromarray(array)
        photo.save(folder / f"{number}_large.jpg", quality=92)
        photo.resize((32, 32)).save(folder / f"{number}_small.jpg", quality=85)
        photo.resize((32, 32)).save(folder / f"{number}_small.png")
        photo.crop((10, 20, 131, 77)).save(folder / f"{number}_wide.png")
        photo.resize((20, 45)).convert("L").save(folder / f"{number}_tall_grey.jpg")
        photo.resize((64, 64)).convert("P", palette=Image.Palette.ADAPTIVE).save(folder / f"{number}_palette.png")
        photo.resize((33, 31)).convert("RGBA").save(folder / f"{number}_alpha.png")
        photo.resize((40, 40)).convert("L").save(folder / f"{number}_grey.png")
    return folder


@pytest.fixture(scope="session")
def sdk(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The SDK of MNN_ROOT; else a folder laid out as one: the headers lead to our interface, the library to the engine in MNN's wheel."""
    if SDK:
        return Path(SDK).resolve()
    folder = tmp_path_factory.mktemp("sdk")
    (folder / "include" / "MNN").mkdir(parents=True)
    (folder / "include" / "MNN" / "Interpreter.hpp").write_text(f'#include "{SOURCE / "interface" / "MNN" / "Interpreter.hpp"}"\n')
    numbers = {"MAJOR": 3, "MINOR": 6, "PATCH": 1}
    (folder / "include" / "MNN" / "MNNDefine.h").write_text("".join(f"#define MNN_VERSION_{k} {v}\n" for k, v in numbers.items()))
    (folder / "lib").mkdir()
    # The engine in the wheel wants Python's symbols; a library of its own has them here, which is found by the path in the program.
    symbols = folder / "lib" / "libMNN.so.3"
    compile_ = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{symbols.name}", str(built / "python_symbols.c"), "-o", str(symbols)]
    assert subprocess.run(compile_, capture_output=True).returncode == 0
    engine = importlib.util.find_spec("_mnncengine")
    assert engine is not None
    (folder / "lib" / "libMNN.so").write_text(f"INPUT({engine.origin} {symbols})\n")
    return folder
