"""Loading data: what comes out, and what is said when nothing can."""

from __future__ import annotations

import gzip
import io
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import archive, folder, png, tree
from PIL import Image
from torch.nn import functional

from irtool.errors import DataError, OptionError
from irtool.progress import Status
from irtool.train import Preprocessing, Settings, evaluate, load_data, predict
from irtool.train.data.augment import Augment
from irtool.train.data.dataset import balanced, statistics


def test_folder_with_splits(tmp_path: Path) -> None:
    data = load_data(folder(tmp_path, tree()))
    assert data.classes == ("cat", "dog")
    assert (len(data.train), len(data.test)) == (10, 10)
    assert data.train.labels.tolist() == [0] * 5 + [1] * 5
    (images,) = data.train.batches([torch.tensor([7, 2])])
    assert images.dtype == torch.uint8
    assert images.shape == (2, 3, 8, 8)
    assert images[:, :, 0, 0].tolist() == [[100, 20, 50], [0, 20, 50]]  # RGB, in the order asked for
    assert data.preprocessing.size == (8, 8)


def test_a_zip_equals_its_folder_even_below_a_top_folder(tmp_path: Path) -> None:
    files = tree()
    a = load_data(folder(tmp_path / "a", files))
    junk = {"__MACOSX/wrapped/train/cat/._00.png": b"x", "wrapped/README.txt": b"x"}
    b = load_data(archive(tmp_path / "b.zip", {f"wrapped/{name}": content for name, content in files.items()} | junk))
    every = [torch.arange(10)]
    for left, right in ((a.train, b.train), (a.test, b.test)):
        assert torch.equal(next(left.batches(every)), next(right.batches(every)))
        assert torch.equal(left.labels, right.labels)
    assert a.preprocessing == b.preprocessing


def test_one_folder_is_split_the_same_way_each_time_and_evenly(tmp_path: Path) -> None:
    source = folder(tmp_path, tree(splits=("",), each=10))
    a, b, c = load_data(source), load_data(source), load_data(source, seed=1)
    assert a.test.labels.bincount().tolist() == [2, 2]
    assert len(a.train) == 16

    def shades(data: object) -> set[tuple[int, int]]:
        (images,) = data.test.batches([torch.arange(4)])  # type: ignore[attr-defined]
        return {(int(image[0, 0, 0]), int(image[1, 0, 0])) for image in images}

    assert shades(a) == shades(b) != shades(c)
    (train,) = a.train.batches([torch.arange(16)])
    assert shades(a).isdisjoint({(int(image[0, 0, 0]), int(image[1, 0, 0])) for image in train})


def test_validation_folder_serves_where_there_is_no_test_folder(tmp_path: Path) -> None:
    data = load_data(folder(tmp_path, tree(splits=("train",)) | tree(splits=("val",), each=3)))
    assert (len(data.train), len(data.test)) == (10, 6)


def test_limit_is_spread_over_the_classes(tmp_path: Path) -> None:
    data = load_data(folder(tmp_path, tree()), limit=4)
    assert data.train.labels.tolist() == [0, 0, 1, 1]
    labels = torch.tensor([0] * 50 + [1] * 2 + [2] * 50)
    assert labels[balanced(labels, 12, seed=0)].bincount().tolist() == [5, 2, 5]


def test_streaming_gives_what_memory_gives(tmp_path: Path) -> None:
    source = archive(tmp_path / "a.zip", tree(each=20))
    a, b = load_data(source), load_data(source, memory_limit=1000)
    assert type(a.train) is not type(b.train)
    order = list(torch.randperm(40, generator=torch.Generator().manual_seed(0)).split(7))
    for left, right in zip(a.train.batches(order), b.train.batches(order), strict=True):
        assert torch.equal(left, right)
    assert a.preprocessing == b.preprocessing  # fewer images than the sample for statistics: exact


def test_resize_covers_and_crops_the_centre(tmp_path: Path) -> None:
    wide = Image.new("RGB", (30, 10), (0, 0, 0))
    wide.paste((200, 200, 200), (10, 0, 20, 10))
    buffer = io.BytesIO()
    wide.save(buffer, "PNG")
    files = {f"{split}/{label}/0.png": buffer.getvalue() for split in ("train", "test") for label in "ab"}
    data = load_data(folder(tmp_path, files), image_size=(10, 10), channels=1)
    (images,) = data.train.batches([torch.tensor([0])])
    assert images.shape == (1, 1, 10, 10)
    assert (images == 200).all()


def test_statistics_are_numpy_s() -> None:
    images = torch.randint(0, 256, (7, 3, 5, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = statistics(images)
    pixels = images.numpy() / 255
    np.testing.assert_allclose(mean, pixels.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, pixels.std((0, 2, 3)), rtol=1e-12)


def test_normalised_training_data_has_mean_0_and_std_1() -> None:
    data = load_data("digits")
    images = data.sample(10_000)
    assert images.shape == (len(data.train), 1, 32, 32)
    assert abs(float(images.mean())) < 1e-4
    assert abs(float(images.std()) - 1) < 1e-4
    assert data.flip is False


def test_a_sample_may_be_augmented_as_training_does() -> None:
    """Each image is a window of itself on black padding, mirrored only where the data allow it; the same ones every time."""
    data = load_data("digits", image_size=16, limit=100)
    augment = Settings().augmentation(data.flip, data.preprocessing.size)
    assert (augment.crop, augment.flip) == (2, False)
    plain, moved = data.sample(20, 3), data.sample(20, 3, augment)
    black = data.preprocessing.normalise(torch.zeros(1, 1, 1, 1, dtype=torch.uint8)).item()
    padded = functional.pad(plain, (2,) * 4, value=black)
    windows = padded.unfold(2, 16, 1).unfold(3, 16, 1)
    same = (windows == moved[:, :, None, None]).all(-1).all(-1)
    assert same.any(-1).any(-1).all()
    assert not torch.equal(plain, moved)
    assert torch.equal(moved, data.sample(20, 3, augment))
    assert Settings(crop=1, flip=True).augmentation(False, (16, 16)) == Augment(1, True)


def test_preprocessing_survives_json_and_normalises_as_defined() -> None:
    preprocessing = Preprocessing((0.1, 0.2, 0.3), (0.5, 0.6, 0.7), (4, 5))
    assert Preprocessing.from_dict(preprocessing.to_dict()) == preprocessing
    images = torch.arange(60, dtype=torch.uint8).view(1, 3, 4, 5)
    expected = (images.double() / 255 - torch.tensor(preprocessing.mean).view(1, 3, 1, 1)) / torch.tensor(preprocessing.std).view(
        1, 3, 1, 1
    )
    torch.testing.assert_close(preprocessing.normalise(images).double(), expected, rtol=0, atol=1e-6)
    with pytest.raises(DataError, match="one mean and one std a channel"):
        Preprocessing((0.1,), (0.5,), (4, 5), channels=3)
    with pytest.raises(DataError, match='Expected keys "mean"'):
        Preprocessing.from_dict({"mean": [0.5]})


def idx_files(root: Path, suffix: str = "") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for prefix, count in (("train", 20), ("t10k", 10)):
        pixels = random.integers(0, 256, (count, 6, 7), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        files = {
            f"{prefix}-images-idx3-ubyte": struct.pack(">HBBIII", 0, 8, 3, count, 6, 7) + pixels.tobytes(),
            f"{prefix}-labels-idx1-ubyte": struct.pack(">HBBI", 0, 8, 1, count) + labels.tobytes(),
        }
        for name, content in files.items():
            (root / (name + suffix)).write_bytes(gzip.compress(content) if suffix else content)
    return root


def test_idx_files_plain_and_gzipped(tmp_path: Path) -> None:
    plain = load_data(idx_files(tmp_path / "fashion-mnist"))
    packed = load_data(idx_files(tmp_path / "mnist", ".gz"))
    assert plain.preprocessing.input_shape == (1, 6, 7)
    assert plain.train.labels.tolist() == [*range(10), *range(10)]
    every = [torch.arange(20)]
    assert torch.equal(next(plain.train.batches(every)), next(packed.train.batches(every)))
    assert (plain.flip, packed.flip) == (True, False)
    assert load_data(tmp_path / "mnist", channels=3, image_size=12).preprocessing.input_shape == (3, 12, 12)


def test_truncated_or_missing_idx_file(tmp_path: Path) -> None:
    root = idx_files(tmp_path)
    images = root / "train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:-5])
    with pytest.raises(DataError, match=r"train-images.*835 bytes of data where 840 belong\. Copy or download it again"):
        load_data(root)
    (root / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte.* is missing. Copy the whole dataset"):
        load_data(root)


@pytest.mark.parametrize("name", ["cifar-10-batches-py", "cifar-100-python"])
def test_a_damaged_folder_of_pickles_is_refused_without_a_download(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision would unpack into the folder, through whatever links are there."""
    import torchvision.datasets

    def refuse(*_: object) -> None:
        raise AssertionError("a download")

    for kind in (torchvision.datasets.CIFAR10, torchvision.datasets.CIFAR100):
        monkeypatch.setattr(kind, "download", refuse)
    (tmp_path / "far").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / name).symlink_to(tmp_path / "far")
    with pytest.raises(DataError, match=r"its files are not complete\. Copy or download CIFAR10*"):
        load_data(tmp_path / "data")
    assert not list((tmp_path / "far").iterdir())


def test_a_list_of_classes_that_is_no_text(tmp_path: Path) -> None:
    rows = bytes([0]) + bytes(3072) + bytes([1]) + bytes(3072)
    for file in (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"):
        (tmp_path / file).write_bytes(rows)
    (tmp_path / "batches.meta.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="no list of classes"):
        load_data(tmp_path)


def test_cifar_binary_files(tmp_path: Path) -> None:
    row = bytes([3]) + bytes([10]) * 1024 + bytes([20]) * 1024 + bytes([30]) * 1024
    for name in (*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"):
        (tmp_path / name).write_bytes(row * 2)
    data = load_data(tmp_path)
    (images,) = data.train.batches([torch.tensor([0])])
    assert images[0, :, 5, 5].tolist() == [10, 20, 30]
    assert data.train.labels.tolist() == [3] * 10
    (tmp_path / "data_batch_3.bin").write_bytes(row[:-1])
    with pytest.raises(DataError, match=r"data_batch_3.bin: truncated. Copy or download it again"):
        load_data(tmp_path)


def test_a_download_that_fails_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    def refuse(*args: object, **kwargs: object) -> None:
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz:\nno network")

    monkeypatch.setattr(datasets, "FashionMNIST", refuse)
    with pytest.raises(DataError, match=r"cannot be downloaded \(Error downloading.*\)\. Give a local folder instead"):
        load_data("FashionMNIST", root=tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no images found. Expected train/<class>"),
        ({"notes.txt": b"x"}, "no images found. Expected train/<class>"),
        ({"a.png": png((0, 0, 0))}, "images, but no class folders. Expected train/<class>"),
        (tree(classes=("cat",)), "only one class .cat.. Expected train/<class>"),
        (tree() | {"test/cow/0.png": png((1, 1, 1))}, "different classes .cow.. Give both splits the same"),
        (
            tree() | {"train/cat/03.png": b"not an image"},
            "03.png: cannot be read as an image .cannot identify image file.. Replace the file",
        ),
        (tree() | {"test/dog/04.png": png((9, 9, 9))[:40]}, "04.png: cannot be read as an image .*Replace the file or remove it"),
    ],
    ids=["empty", "no images", "no classes", "one class", "other classes", "not an image", "truncated"],
)
def test_bad_folders_and_zips(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=message):
        load_data(folder(tmp_path / "folder", files))
    with pytest.raises(DataError, match=message):
        load_data(archive(tmp_path / "a.zip", files))


def test_a_corrupt_file_is_named_when_streaming_too(tmp_path: Path) -> None:
    data = load_data(folder(tmp_path, tree(each=20)), memory_limit=1000)
    (tmp_path / "test/cat/07.png").write_bytes(b"changed since")
    with pytest.raises(DataError, match=r"07.png: cannot be read as an image"):
        predict(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 2)), data.test, batch_size=4)


@pytest.mark.parametrize("name", ["../evil.png", "/etc/evil.png", "train/../../evil.png", "C:/evil.png", "..\\evil.png"])
def test_an_archive_that_points_outside_is_refused(tmp_path: Path, name: str) -> None:
    path = archive(tmp_path / "a.zip", tree() | {name: png((0, 0, 0))})
    with pytest.raises(DataError, match=r"unsafe name in the archive.*Paths must stay inside"):
        load_data(path)
    assert [file.name for file in tmp_path.iterdir()] == ["a.zip"]


def test_a_truncated_zip(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip", tree())
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"a.zip: not a complete zip file.*download or copy it again"):
        load_data(path)


def test_a_damaged_entry_is_named(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zip", tree())
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"IDAT") + 6] ^= 0xFF  # the first image's pixels: its checksum no longer holds
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"a.zip:train/cat/00.png: cannot unpack .*The zip is damaged"):
        load_data(path)


def test_what_does_not_exist_and_what_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such folder, zip or dataset.*or one of: digits, cifar10"):
        load_data(tmp_path / "nowhere")
    for change, message in (
        ({"channels": 2}, r"Give 1 .grey. or 3"),
        *(({"image_size": size}, "at least 1 pixel") for size in (0, "32", (8, 8, 8), 8.5, True)),
        *(({"limit": limit}, "at least 1 image") for limit in (0, 1.5, "a")),
        *((change, "whole numbers of at least 0 and 1") for change in ({"seed": 1.5}, {"seed": 2**70}, {"workers": 0})),
        *((change, "one number a channel") for change in ({"mean": 0.5}, {"std": ("a",)})),
    ):
        with pytest.raises(OptionError, match=message):
            load_data("digits", **change)
    with pytest.raises(DataError, match="Give finite numbers"):
        load_data("digits", limit=20, mean=[float("nan")])
    with pytest.raises(OptionError, match="at least 1"):
        load_data("digits", limit=20).sample(-1)


def test_evaluate_takes_modules_and_numpy_callables(tmp_path: Path) -> None:
    data = load_data(folder(tmp_path, tree()))

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = torch.nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            red = x[:, 0].mean((1, 2))
            return torch.stack([-red, red], 1)

    net = Net()
    net.bn.eval()  # frozen by the caller
    reports: list[Status] = []
    score = evaluate(net, data, batch_size=4, progress=reports.append)
    assert (score.accuracy, score.count) == (1.0, 10)
    assert reports[-1].done == reports[-1].total == 10
    assert net.training
    assert not net.bn.training
    by_numpy = evaluate(lambda x: [np.stack([-x[:, 0].mean((1, 2)), x[:, 0].mean((1, 2))], 1)], data.test)
    assert by_numpy.accuracy == 1.0
    assert by_numpy.loss == pytest.approx(score.loss, abs=1e-6)
    wrong = evaluate(lambda x: np.stack([x[:, 0].mean((1, 2)), -x[:, 0].mean((1, 2))], 1), data.test)
    assert wrong.accuracy == 0.0
    logits = predict(net, data.test, batch_size=3)
    loss = torch.nn.functional.cross_entropy(logits, data.test.labels)
    assert float(loss) == pytest.approx(score.loss, abs=1e-6)


def test_a_model_of_other_classes_or_another_input_is_refused(tmp_path: Path) -> None:
    data = load_data(folder(tmp_path, tree()))
    flat = torch.nn.Flatten()
    with pytest.raises(DataError, match=r"the output is \(10, 5\), but the data has 2 classes.*num_classes=2"):
        evaluate(torch.nn.Sequential(flat, torch.nn.Linear(192, 5)), data)
    with pytest.raises(DataError, match=r"refuses an input of \(10, 3, 8, 8\).*model's image_size and channels"):
        evaluate(torch.nn.Sequential(flat, torch.nn.Linear(64, 2)), data)
    with pytest.raises(OptionError, match=r"Give a torch.nn.Module, a graph, or a callable"):
        evaluate("net", data)
