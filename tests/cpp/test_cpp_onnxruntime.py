"""The C++ runner with onnxruntime: Python's numbers from .onnx files, and one line for whatever is wrong with them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from cpp_runner import CLASSES, PREPROCESSING, SOURCE, numbers, refused
from onnx import TensorProto, helper
from PIL import Image

import irtool
from irtool.engines import OnnxSession
from irtool.engines.onnxruntime.calibrate import calibrate
from irtool.engines.onnxruntime.prepare import prepared
from irtool.engines.onnxruntime.qdq import to_qdq
from irtool.models import VGG
from irtool.quant import Scheme, make_recipe, place
from irtool.train.data.image_files import FolderTree, decode

Runner = Callable[..., subprocess.CompletedProcess[str]]
NO_MNN = "-DPython=false"  # a program that prints nothing: no MNN is found with it


def configured(build: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["cmake", "-S", str(SOURCE), "-B", str(build), NO_MNN, *options], capture_output=True, text=True)


@pytest.fixture(scope="module")
def tools() -> None:
    """What every build needs; the tests skip without it."""
    if shutil.which("cmake") is None or shutil.which("c++") is None:
        pytest.skip("no cmake or no C++ compiler here")
    if not any(Path(folder, "stb/stb_image.h").exists() for folder in ("/usr/include", "/usr/local/include")):
        pytest.skip("stb is not installed here")


@pytest.fixture(scope="module")
def built(tools: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sanitized build with onnxruntime and without MNN: of the folder in ONNXRUNTIME_ROOT, or the system's."""
    build = tmp_path_factory.mktemp("build")
    root = os.environ.get("ONNXRUNTIME_ROOT", "")
    done = configured(build, f"-DONNXRUNTIME_ROOT={root}", "-DSANITIZE=ON", "-DCMAKE_BUILD_TYPE=Debug")
    if done.returncode and not root and "there is no onnxruntime" in " ".join(done.stderr.split()):
        pytest.skip("no onnxruntime with C++ headers here: name one in ONNXRUNTIME_ROOT, or install libonnxruntime-dev (Debian 13)")
    assert done.returncode == 0, done.stderr
    done = subprocess.run(["cmake", "--build", str(build), "--parallel", "2"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning" not in done.stdout + done.stderr
    return build


@pytest.fixture(scope="module")
def runner(built: Path) -> Runner:
    """Run the sanitized build."""
    environment = {**os.environ, "ASAN_OPTIONS": "allocator_may_return_null=1"}

    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        call = [str(built / "irtool-run"), *map(str, arguments)]
        return subprocess.run(call, capture_output=True, text=True, errors="replace", timeout=900, env=environment)

    return run


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with float.onnx, and int8.onnx in QDQ form; each describes itself."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models")
    graph = irtool.fold_batchnorm(irtool.trace(VGG(11, width=0.125).eval(), torch.zeros(2, 3, 32, 32)))
    described = {"irtool.preprocessing": json.dumps(PREPROCESSING.to_dict()), "irtool.classes": json.dumps(CLASSES)}
    irtool.export_onnx(graph, folder / "float.onnx", metadata=described)
    model = prepared(onnx.load(str(folder / "float.onnx")))
    placement = place(model)
    noise = np.random.default_rng(0).normal(size=(2, 16, 3, 32, 32)).astype(np.float32)
    stats = calibrate(model, placement.tensors, noise, threads=1)
    integers = to_qdq(model, make_recipe(model, placement, stats, Scheme(weight_bits=7)))
    onnx.helper.set_model_props(integers, described)
    onnx.save(integers, folder / "int8.onnx")
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs of the model's size and of others, and a grey one."""
    from sklearn.datasets import load_sample_images

    folder = tmp_path_factory.mktemp("pictures")
    for number, array in enumerate(load_sample_images().images):
        photo = Image.fromarray(array)
        photo.resize((32, 32)).save(folder / f"{number}_small.png")
        photo.crop((10, 20, 131, 77)).save(folder / f"{number}_wide.jpg", quality=92)
        photo.resize((20, 45)).convert("L").save(folder / f"{number}_grey.png")
    return folder


def by_python(model: Path, folder: Path) -> np.ndarray:
    """Logits of all pictures of a folder, in the order of their names, from onnxruntime in Python."""
    tree, session = FolderTree(folder), OnnxSession(model, 1)
    pixels = torch.stack([torch.from_numpy(decode(tree, name, 3, (32, 32))) for name in tree.names()])
    return session.run(PREPROCESSING.normalise(pixels).numpy())[0]


@pytest.mark.parametrize("model", ["float", "int8"])
def test_logits_are_those_of_python(runner: Runner, models: Path, pictures: Path, model: str) -> None:
    expected = by_python(models / f"{model}.onnx", pictures)
    for batch, threads in (("1", "1"), ("4", "2")):
        got = numbers(runner(models / f"{model}.onnx", pictures, "--raw", "--batch", batch, "--threads", threads))
        assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


def test_a_file_describes_itself_unless_another_is_given(runner: Runner, models: Path, pictures: Path, tmp_path: Path) -> None:
    done = runner(models / "float.onnx", pictures, "--json", "--top", "1")
    best = by_python(models / "float.onnx", pictures).argmax(1)
    assert [json.loads(line)["top"][0]["class"] for line in done.stdout.splitlines()] == [CLASSES[index] for index in best]
    (tmp_path / "other.json").write_text(json.dumps({"preprocessing": PREPROCESSING.to_dict(), "classes": ["a"] * 10}))
    assert runner(models / "float.onnx", pictures / "0_small.png", "--top", "1", "--meta", tmp_path / "other.json").stdout.split()[1] == "a"
    plain = onnx.load(str(models / "float.onnx"))
    del plain.metadata_props[:]
    onnx.save(plain, tmp_path / "plain.onnx")
    assert "there is no plain.json and no report.json beside it" in refused(runner(tmp_path / "plain.onnx", pictures))
    shutil.copy(tmp_path / "other.json", tmp_path / "plain.json")
    assert numbers(runner(tmp_path / "plain.onnx", pictures, "--raw")).shape == (6, 10)


def test_bench_prints_times(runner: Runner, models: Path) -> None:
    found = json.loads(runner(models / "int8.onnx", "--bench", "3", "--batch", "2", "--json").stdout)
    assert (found["runs"], found["batch"], found["threads"]) == (3, 2, 1)
    assert 0 < found["least_ms"] <= found["median_ms"] <= found["p95_ms"]


def test_a_file_of_one_batch_size(runner: Runner, models: Path, pictures: Path, tmp_path: Path) -> None:
    model = onnx.load(str(models / "float.onnx"))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 3
    del model.graph.value_info[:]
    onnx.save(model, tmp_path / "three.onnx")
    expected = by_python(models / "float.onnx", pictures)
    got = numbers(runner(tmp_path / "three.onnx", pictures, "--raw", "--batch", "3"))
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()
    assert "takes 3 images at a time, not 1: give --batch 3" in refused(runner(tmp_path / "three.onnx", pictures))


def _saved(path: Path, nodes: list[onnx.NodeProto], inputs: dict[str, tuple[int, list[int | str]]]) -> Path:
    """A model of float output `y`, described as the others are."""
    values = [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()]
    graph = helper.make_graph(nodes, "net", values, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.helper.set_model_props(model, {"irtool.preprocessing": json.dumps(PREPROCESSING.to_dict())})
    onnx.save(model, path)
    return path


def _damaged(whole: Path, folder: Path) -> dict[str, tuple[Path, str]]:
    """Model and complaint by what is wrong."""
    content = whole.read_bytes()

    def file(name: str, data: bytes) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    def altered(name: str, change: Callable[[onnx.ModelProto], None]) -> Path:
        model = onnx.load_from_string(content)
        change(model)
        onnx.save(model, folder / name)
        return folder / name

    def external(model: onnx.ModelProto) -> None:
        weight = model.graph.initializer[0]
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        weight.external_data.add(key="location", value="lost.data")

    (folder / "folder.onnx").mkdir()
    image: dict[str, tuple[int, list[int | str]]] = {"x": (TensorProto.FLOAT, ["n", 3, 32, 32])}
    relu = [helper.make_node("Relu", ["x"], ["y"])]
    described = {"grey": {"channels": 1, "mean": [0.5], "std": [0.5]}, "size": {"size": [64, 64]}}
    texts = {name: json.dumps({**PREPROCESSING.to_dict(), **change}) for name, change in described.items()}
    return {
        "no model": (folder / "none.onnx", "cannot be read (No such file"),
        "a folder": (folder / "folder.onnx", "is a folder"),
        "an empty model": (file("nothing.onnx", b""), "is empty"),
        "a foreign model": (file("foreign.onnx", b"PK\3\4" + bytes(500)), "is no ONNX model"),
        "half a model": (file("half.onnx", content[: len(content) // 2]), "is no ONNX model"),
        "onnxruntime's other form": (file("other.onnx", bytes(4) + b"ORTM" + bytes(500)), "is no ONNX model"),
        "another name": (file("model.bin", content), "its name must end in .mnn or .onnx"),
        "MNN's file": (file("model.mnn", content), "was built without MNN"),
        "an unknown operator": (_saved(folder / "odd.onnx", [helper.make_node("Nonsense", ["x"], ["y"])], image), "onnxruntime cannot run this model ("),
        "lost weights": (altered("lost.onnx", external), "onnxruntime cannot run this model ("),
        "two inputs": (_saved(folder / "two.onnx", [helper.make_node("Add", ["x", "z"], ["y"])], {**image, "z": image["x"]}), "has 2 inputs"),
        "no image": (_saved(folder / "rows.onnx", relu, {"x": (TensorProto.FLOAT, ["n", 3])}), "its input is no image of floats"),
        "integers": (_saved(folder / "bytes.onnx", [helper.make_node("Cast", ["x"], ["y"], to=1)], {"x": (TensorProto.UINT8, ["n", 3, 32, 32])}), "no image of floats"),
        "an output of all images": (_saved(folder / "flat.onnx", [helper.make_node("Shape", ["x"], ["s"], end=3), helper.make_node("Cast", ["s"], ["y"], to=1)], image), "gives 3 values for 2 images"),
        "half a description": (altered("cut.onnx", lambda m: helper.set_model_props(m, {"irtool.preprocessing": "{"})), "in its metadata: not JSON"),
        "wrong channels": (altered("grey.onnx", lambda m: helper.set_model_props(m, {"irtool.preprocessing": texts["grey"]})), "takes 3 channels"),
        "a wrong size": (altered("size.onnx", lambda m: helper.set_model_props(m, {"irtool.preprocessing": texts["size"]})), "takes 32x32 pixels"),
    }  # fmt: skip


def test_whatever_is_wrong_with_a_file_is_said_in_one_line(runner: Runner, models: Path, pictures: Path, tmp_path: Path) -> None:
    for name, (model, complaint) in _damaged(models / "float.onnx", tmp_path).items():
        assert complaint in refused(runner(model, pictures, "--batch", "2")), name


def test_damaged_bytes_never_crash_it(runner: Runner, models: Path, pictures: Path, tmp_path: Path) -> None:
    draw = np.random.default_rng(7)
    content = (models / "int8.onnx").read_bytes()
    names = np.array([at for at in range(len(content)) if content[at : at + 6] == b"Linear"])  # about the operators, not the weights
    for number in range(24):
        hurt = bytearray(content)
        for at in draw.choice(names, 1 + number % 4) + draw.integers(-60, 60, 1 + number % 4):
            hurt[min(at, len(hurt) - 1)] = draw.integers(0, 256)
        (tmp_path / "hurt.onnx").write_bytes(hurt)
        done = runner(tmp_path / "hurt.onnx", pictures / "0_small.png")
        assert done.returncode in (0, 1), (number, done.returncode, done.stderr)
        assert "Sanitizer" not in done.stderr, done.stderr
        assert done.stderr.count("\n") == done.returncode


def test_a_folder_that_is_no_onnxruntime(tools: None, tmp_path: Path) -> None:
    def told() -> str:
        done = configured(tmp_path / "build", f"-DONNXRUNTIME_ROOT={tmp_path}")
        assert done.returncode != 0
        return " ".join(done.stderr.split())

    assert f"{tmp_path} is no onnxruntime: it needs include/onnxruntime_cxx_api.h" in told()
    for part in ("include/onnxruntime_cxx_api.h", "lib/libonnxruntime.so"):
        (tmp_path / part).parent.mkdir()
        (tmp_path / part).touch()
    (tmp_path / "include" / "onnxruntime_c_api.h").write_text("#define ORT_API_VERSION 9\n")
    assert "its headers are of version 1.9, and the runner needs 1.20 or newer" in told()
