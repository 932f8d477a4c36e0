"""Training on a user's own DataLoader."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import irtool
from irtool.errors import DataError, IrtoolError, OptionError
from irtool.train import Data, Loaders, Preprocessing, Settings, distill, evaluate, finetune, fit, recover, sparse
from irtool.train.data.split import MemorySplit
from irtool.train.stages import train

CLASSES = ("a", "b", "c")


def _net(classes: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes)
    )


def _images(count: int = 36) -> tuple[Tensor, Tensor]:
    """Noise with one bright channel, which is the class."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(count) % 3
    images = torch.randn(count, 3, 8, 8, generator=generator)
    images[torch.arange(count), labels] += 2
    return images, labels


def _loader(count: int = 36, batch: int = 8, **options: Any) -> DataLoader:
    return DataLoader(TensorDataset(*_images(count)), batch_size=batch, **options)


def test_every_batch_of_the_loader_is_trained_on_in_its_order() -> None:
    seen: list[int] = []
    net = _net()
    history = fit(net, _loader(), epochs=2, lr=0.05, on_step=lambda module, step, loss: seen.append(step))
    assert seen == list(range(1, 11))  # 36 images in batches of 8: the last one has 4, and counts
    assert history.facts["train_batches"] == 5
    assert history.last.test_accuracy is None
    assert not net.training


def test_a_run_is_that_of_a_plain_loop() -> None:
    net, plain = _net(), _net()
    for both in (net, plain):
        both[3].p = 0.0
    fit(net, (_loader(), None), epochs=3, lr=0.05, schedule="constant", weight_decay=0.0, momentum=0.0)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.05)
    plain.train()
    for _ in range(3):
        for images, labels in _loader():
            nn.functional.cross_entropy(plain(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(net.state_dict()[name], tensor, msg=name)


def test_the_second_loader_is_scored_as_the_model_is(tmp_path: Path) -> None:
    net, test = _net(), _loader(20, 7)
    history = fit(net, (_loader(shuffle=True), test), epochs=4, lr=0.1, out=tmp_path, patience=4)
    images, labels = _images(20)
    right = float((net(images).argmax(1) == labels).float().mean())
    assert history.last.test_accuracy == pytest.approx(right)
    assert right > 0.9
    assert (tmp_path / "best.pt").exists()
    score = evaluate(net, test)
    assert (score.count, score.accuracy) == (20, pytest.approx(right))
    assert score.loss == pytest.approx(float(nn.functional.cross_entropy(net(images), labels).detach()), rel=1e-5)


def test_a_resumed_run_ends_in_the_same_bits(tmp_path: Path) -> None:
    options: dict[str, Any] = {"lr": 0.05, "schedule": "constant"}
    whole, halves = _net(), _net()
    fit(whole, _loader(shuffle=True), epochs=3, out=tmp_path / "whole", **options)

    def stop(module: nn.Module, step: int, loss: float) -> None:
        if step == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(halves, _loader(shuffle=True), epochs=3, out=tmp_path / "halves", on_step=stop, **options)
    fit(halves, _loader(shuffle=True), epochs=3, out=tmp_path / "halves", resume=True, **options)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), halves.state_dict().values(), strict=True))


class Dicts(torch.utils.data.Dataset):
    """As Hugging Face's data sets give their rows."""

    def __init__(self) -> None:
        self._images, self._labels = _images()

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"pixel_values": self._images[row], "labels": int(self._labels[row])}


def test_batches_may_be_dicts_lists_or_arrays() -> None:
    images, labels = _images()
    loaders = [DataLoader(Dicts(), batch_size=9), [[images, labels]], [(images.numpy(), labels.numpy(), "more")]]
    for loader in loaders:
        assert fit(_net(), loader, epochs=1, lr=0.05).last.train_loss > 0


def test_each_stage_takes_a_loader() -> None:
    data = (_loader(), _loader(12))
    teacher = _net()
    fit(teacher, data, epochs=2, lr=0.1)
    assert finetune(_net(), data, epochs=1).facts["stage"] == "finetune"
    assert distill(_net(), teacher, data, epochs=1).facts["stage"] == "distill"
    chosen = sparse(_net(), data, strength="auto", epochs=1, lr=0.05)
    assert chosen.facts["strength"] > 0
    assert train("plain", _net(), data, {"epochs": 1}).last.test_accuracy is not None
    graph = irtool.fold_batchnorm(irtool.trace(_net().eval(), torch.zeros(2, 3, 8, 8)))
    rounded = train("qat", graph, (_loader(batch=12), None), {"epochs": 1, "lr": 0.01})
    assert rounded.facts["stage"] == "qat"


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        images, labels = _images()
        yield from ((image, int(label)) for image, label in zip(images, labels, strict=True))


def _wrong() -> dict[str, tuple[Callable[[], object], type[IrtoolError], str]]:
    images, labels = _images()
    memory = MemorySplit(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64), CLASSES, Preprocessing((0.5,) * 3, (0.5,) * 3, (8, 8)))  # fmt: skip
    data = Data("x", memory, memory)
    return {
        "no data": (lambda: fit(_net(), 3), OptionError, "a int is no data to train on"),
        "a tensor": (lambda: fit(_net(), images), OptionError, "a Tensor is no data to train on"),
        "a split alone": (lambda: fit(_net(), memory), OptionError, "a MemorySplit is no data"),
        "a stream": (lambda: fit(_net(), DataLoader(Stream(), batch_size=4)), OptionError, "no batches, or no length"),
        "a generator": (lambda: fit(_net(), iter(_loader())), OptionError, "no batches, or no length"),
        "an empty list": (lambda: fit(_net(), []), OptionError, "no batches, or no length"),
        "no labels": (lambda: fit(_net(), [(images,)]), DataError, "a batch is a tuple"),
        "other names": (lambda: fit(_net(), [{"a": images, "b": labels}]), DataError, "a dict of a, b"),
        "float labels": (lambda: fit(_net(), [(images, labels.float())]), DataError, "float32 labels"),
        "one label short": (lambda: fit(_net(), [(images, labels[1:])]), DataError, "labels of shape (35,) for 36 images"),
        "negative": (lambda: fit(_net(), [(images, labels - 1)]), DataError, "label -1"),
        "more classes": (lambda: fit(_net(2), [(images, labels)]), DataError, "label 2, but the model has 2 classes"),
        "more classes scored": (lambda: evaluate(_net(2), [(images, labels)]), DataError, "label 2, but the model has 2 classes"),
        "raw pixels": (lambda: fit(_net(), [(images.byte(), labels)]), DataError, "uint8 images"),
        "maps": (lambda: fit(nn.Conv2d(3, 3, 1), [(images, labels)]), DataError, "the output is (36, 3, 8, 8)"),
        "other images": (lambda: fit(_net(), [(images[:, :1], labels)]), DataError, "the model refuses an input"),
        "idle options": (lambda: fit(_net(), _loader(), batch_size=4, mixup=0.2), OptionError, "batch_size, mixup with a DataLoader"),
        "patience": (lambda: fit(_net(), _loader(), patience=2), OptionError, "patience without anything to score"),
        "another teacher": (lambda: distill(_net(), _net(4), _loader()), DataError, "the teacher has 4 classes, the student 3"),
        "a cache": (lambda: distill(_net(), _net(), _loader(), cache=True), OptionError, "a DataLoader will not do here"),
        "recover": (lambda: recover(None, None, _loader()), OptionError, "a DataLoader will not do here"),
        "not twice": (lambda: fit(_net(), _Once(), epochs=2), DataError, "the loader gave no batch"),
        "an empty Loaders": (lambda: Loaders([]), OptionError, "no batches, or no length"),
        "settings in data's place": (lambda: fit(_net(), Settings()), OptionError, "a Settings is no data"),
        "data is data": (lambda: fit(_net(2), data, epochs=1), DataError, "the data has 3 classes"),
    }  # fmt: skip


class _Once:
    """Something that has a length, and can be read once."""

    def __init__(self) -> None:
        self._left = [_images()]

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        while self._left:
            yield self._left.pop()


@pytest.mark.parametrize("case", _wrong())
def test_what_cannot_be_trained_on_is_told_in_one_line(case: str) -> None:
    act, kind, said = _wrong()[case]
    with pytest.raises(kind) as told:
        act()
    assert said in str(told.value)
    assert "\n" not in str(told.value)
