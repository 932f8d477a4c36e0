"""Labels and splits that do not belong to their classes or images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from training import QUICK, net, same

from irtool.errors import DataError
from irtool.train import Data, evaluate, fit, load_data
from irtool.train.data.split import MemorySplit


@pytest.fixture(scope="module")
def digits() -> Data:
    return load_data("digits", image_size=12, limit=320)


def labelled(split: MemorySplit, change: Callable[[Tensor], Tensor]) -> MemorySplit:
    return MemorySplit(split.images, change(split.labels), split.classes, split.preprocessing)


def with_first(label: int) -> Callable[[Tensor], Tensor]:
    return lambda labels: torch.cat([torch.tensor([label]), labels[1:]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_first(10), r"label 10, but the data has 10 classes. Number the labels from 0 to 9"),
        (with_first(-100), r"label -100, but the data has 10 classes. Number the labels from 0 to 9"),
        (Tensor.float, r"float32 labels of shape .*labels.long\(\)"),
        (lambda labels: torch.nn.functional.one_hot(labels, 10), r"int64 labels of shape \(\d+, 10\).*labels.argmax\(1\)"),
    ],
)
def test_labels_that_are_no_class_s_number(digits: Data, change: Callable[[Tensor], Tensor], message: str) -> None:
    train, test = labelled(digits.train, change), labelled(digits.test, change)
    with pytest.raises(DataError, match=message):
        evaluate(net(), test)
    for data in (replace(digits, train=train), replace(digits, test=test)):
        for mixup in (0.0, 0.2):
            model = net()
            with pytest.raises(DataError, match=message):
                fit(model, data, QUICK, mixup=mixup)
            assert same(model.state_dict(), net().state_dict())  # found before the first step


@pytest.mark.parametrize("dtype", [torch.int32, torch.uint8])
def test_whole_labels_of_any_type_are_labels(digits: Data, dtype: torch.dtype) -> None:
    def cast(labels: Tensor) -> Tensor:
        return labels.to(dtype)

    data = replace(digits, train=labelled(digits.train, cast), test=labelled(digits.test, cast))
    narrow, wide = net(), net()
    for mixup in (0.0, 0.2):
        a, b = fit(narrow, data, QUICK, mixup=mixup), fit(wide, digits, QUICK, mixup=mixup)
        assert (a.last.train_loss, a.last.test_loss) == (b.last.train_loss, b.last.test_loss)
    assert evaluate(narrow, data).accuracy == evaluate(wide, digits).accuracy


def test_a_split_whose_parts_disagree(digits: Data) -> None:
    split = digits.train
    for images, labels in ((split.images[:5], split.labels), (split.images.repeat(1, 3, 1, 1), split.labels)):
        with pytest.raises(DataError, match=r"320 labels and a preprocessing for \(1, 12, 12\), but images .*Give one label an image"):
            MemorySplit(images, labels, split.classes, split.preprocessing)


def test_an_empty_test_split_is_found_before_training(digits: Data) -> None:
    empty = MemorySplit(digits.test.images[:0], digits.test.labels[:0], digits.classes, digits.preprocessing)
    model = net()
    with pytest.raises(DataError, match=r"no images to evaluate on. Give a test split"):
        fit(model, replace(digits, test=empty), QUICK)
    assert same(model.state_dict(), net().state_dict())
