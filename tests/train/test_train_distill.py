"""Distillation: the loss by hand, the teacher left alone, hints."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from training import QUICK, net, same

from irtool.errors import DataError, OptionError
from irtool.train import Data, distill, distillation_loss, evaluate, fit, load_data
from irtool.train.distill import attention_loss


@pytest.fixture(scope="module")
def digits() -> Data:
    return load_data("digits", image_size=12, limit=320)


def test_distillation_loss_by_hand() -> None:
    random = np.random.default_rng(0)
    student, teacher = random.normal(size=(4, 5)) * 3, random.normal(size=(4, 5)) * 3
    labels, alpha, temperature = np.array([0, 2, 4, 1]), 0.7, 4.0

    def softmax(x: np.ndarray) -> np.ndarray:
        e = np.exp(x - x.max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)

    ce = -np.log(softmax(student)[np.arange(4), labels]).mean()
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    kl = (p * np.log(p / q)).sum() / 4  # summed over classes, averaged over the batch
    expected = (1 - alpha) * ce + alpha * temperature**2 * kl
    found = distillation_loss(torch.from_numpy(student), torch.from_numpy(teacher), torch.from_numpy(labels), alpha, temperature)
    assert float(found) == pytest.approx(expected, rel=1e-12)


def test_distilling_follows_the_teacher_and_leaves_it_alone(digits: Data) -> None:
    teacher = net(1)
    fit(teacher, digits, QUICK, epochs=4)
    teacher.train()
    before = copy.deepcopy(teacher.state_dict())
    by_module, by_session, by_cache = net(2), net(2), net(2)
    options = {"epochs": 2, "batch_size": 32, "alpha": 1.0, "crop": 0, "lr": 0.05}
    distill(by_module, teacher, digits, **options)
    assert teacher.training
    assert same(teacher.state_dict(), before)
    frozen = copy.deepcopy(teacher).eval()
    distill(by_session, lambda images: frozen(torch.from_numpy(images)).detach().numpy(), digits, **options)
    distill(by_cache, teacher, digits, cache=True, **options)
    for other in (by_session, by_cache):  # without augmentation, all three see the same teacher
        for a, b in zip(by_module.state_dict().values(), other.state_dict().values(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    assert evaluate(by_module, digits).accuracy > 0.7  # alpha 1: it never saw a label
    with pytest.raises(OptionError, match="Give a copy"):
        distill(teacher, teacher, digits)
    with pytest.raises(OptionError, match="leave cache out"):
        distill(net(), teacher, digits, cache=True, mixup=0.2)
    with pytest.raises(OptionError, match="Give alpha from 0 to 1"):
        distill(net(), teacher, digits, alpha=1.5)


def test_hints_draw_features_together_whatever_their_channels(digits: Data) -> None:
    teacher, plain = net(1), net(2)
    fit(teacher, digits, QUICK)
    narrow = nn.Sequential(nn.Conv2d(8, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4))
    plain[4], plain[5], plain[9] = narrow[0], narrow[1], nn.Linear(144, 10)
    hinted = copy.deepcopy(plain)
    options = {"epochs": 3, "batch_size": 32, "crop": 0, "lr": 0.05}
    distill(plain, teacher, digits, **options)
    distill(hinted, teacher, digits, hints={"6": "6"}, hint_weight=10.0, **options)
    images = digits.sample(64)
    target = teacher[:7](images)
    assert attention_loss(hinted[:7](images), target) < 0.8 * attention_loss(plain[:7](images), target)
    assert not hinted[6]._forward_hooks
    with pytest.raises(OptionError, match=r"the student has no module 'nothing'.*named_modules"):
        distill(hinted, teacher, digits, hints={"nothing": "6"})
    with pytest.raises(OptionError, match="Choose maps of equal height and width"):
        distill(hinted, teacher, digits, hints={"0": "6"}, **options)


class Parted(nn.Module):
    """A student within a larger module, and layers that do not run or give more than a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.student, self.idle = net(), nn.ReLU()
        self.rows = nn.LSTM(12, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.student(x) + self.rows(x[:, 0])[0].mean()


def tied() -> tuple[nn.Module, nn.Module]:
    student, teacher = net(), net(1)
    teacher[9].weight = student[9].weight
    return student, teacher


SHARING = {
    "the student itself": lambda: (one := net(), one),
    "a teacher with the student in it": lambda: ((whole := Parted()).student, whole),
    "a student with the teacher in it": lambda: (whole := Parted(), whole.student),
    "one parameter": tied,
}


@pytest.mark.parametrize("kind", SHARING)
@pytest.mark.parametrize("cache", [False, True])
def test_a_teacher_that_shares_with_the_student_is_refused(digits: Data, kind: str, cache: bool) -> None:
    student, teacher = SHARING[kind]()
    with pytest.raises(OptionError, match=r"distill: the teacher shares .* with the student. Give a copy: copy.deepcopy\(teacher\)"):
        distill(student, teacher, digits, QUICK, cache=cache)
    distill(student, copy.deepcopy(teacher), digits, QUICK, epochs=1, cache=cache)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hints": {"idle": "idle"}}, r"hints: the student's idle did not run. Name modules that run in every forward"),
        ({"hints": {"student.4": "idle"}}, r"hints: the teacher's idle did not run. Name modules"),
        ({"hints": {"rows": "rows"}}, r"hints: the student's rows gives a tuple. Name modules"),
        ({"hints": ["rows"]}, r"hints \['rows'\]. Give module names"),
        ({"hint_weight": "much"}, r"hint_weight 'much'. Give a number of at least 0"),
        ({"alpha": "half"}, r"alpha 'half', temperature 3.0. Give alpha from 0 to 1"),
        ({"temperature": float("inf")}, r"temperature inf. Give alpha from 0 to 1 and a temperature above 0"),
        ({"teacher": None}, r"a NoneType cannot be evaluated. Give a torch.nn.Module, a graph, or a callable"),
        ({"teacher": None, "cache": True}, r"a NoneType cannot be evaluated. Give a torch.nn.Module"),
    ],
)
def test_what_cannot_be_distilled(digits: Data, change: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        distill(**{"student": Parted(), "teacher": Parted(), "data": digits, "settings": QUICK, **change})


def test_a_teacher_that_refuses_the_images_is_named(digits: Data) -> None:
    for teacher in (nn.Linear(5, 5), lambda images: images @ np.zeros((5, 5), np.float32)):
        with pytest.raises(DataError, match=r"^teacher: the model refuses an input of \(32, 1, 12, 12\)"):
            distill(net(), teacher, digits, QUICK)
