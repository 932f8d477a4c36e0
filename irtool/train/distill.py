"""Finetuning, and distillation from a teacher (Hinton, Vinyals and Dean, 2015)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from irtool.errors import DataError, OptionError
from irtool.progress import Progress, silent
from irtool.tensor_defaults import real_tensors
from irtool.train.batch import Batch
from irtool.train.data.dataset import Data
from irtool.train.data.loaders import as_loaders, only_data
from irtool.train.evaluate import logits_of, module_of, numpy_forward, predict, run_model
from irtool.train.fit import Trainable, fit
from irtool.train.history import History
from irtool.train.hooks import OnEpoch
from irtool.train.settings import Settings, is_number

FINETUNE = Settings(epochs=10, lr=0.01)
"""The published settings for finetuning and distillation: a tenth of the rate for training from scratch."""


def finetune(
    model: object,
    data: Trainable,
    settings: Settings = FINETUNE,
    *,
    on_epoch: OnEpoch | None = None,
    progress: Progress = silent,
    **changes: Any,
) -> History:
    """Train a pruned model further, in place, at a small learning rate (0.01 unless told otherwise). See `fit`."""
    return fit(model, data, settings, on_epoch=on_epoch, facts={"stage": "finetune"}, progress=progress, **changes)


@real_tensors()
def distill(
    student: object,
    teacher: object,
    data: Trainable,
    settings: Settings = FINETUNE,
    *,
    alpha: float = 0.9,
    temperature: float = 3.0,
    cache: bool = False,
    hints: Mapping[str, str] | None = None,
    hint_weight: float = 1.0,
    on_epoch: OnEpoch | None = None,
    progress: Progress = silent,
    **changes: Any,
) -> History:
    """Train a student in place towards a teacher's outputs: `(1 - alpha) * CE + alpha * T^2 * KL`, see `distillation_loss`.

    Args:
        student: an `nn.Module` or a graph.
        teacher: the same, or a callable on numpy arrays (a session). A module runs in eval mode, without gradients, on the
            training device, and is put back as it was. It may share no layer or weight with the student.
        data, settings, on_epoch, progress, changes: see `fit`.
        alpha: weight of the teacher against the labels, in [0, 1].
        temperature: T; larger is softer.
        cache: run the teacher once over the plain training images and keep its logits, instead of once a step on the images
            that the student sees. Faster, and less exact: the student's images are cropped and mirrored. Not with mixup, nor
            with a DataLoader, whose order it does not know.
        hints: module names, student's to teacher's, whose outputs (N, C, H, W) are made alike too: see `attention_loss`.
            Their heights and widths must agree; their channels need not.
        hint_weight: factor of the hints' mean loss.

    Raises:
        OptionError: a value that can never work, or an unknown module in `hints`.
        DataError, TrainError, FileError: see `fit`.
    """
    settings = Settings.merged(settings, changes)
    module = module_of(student)
    _check_distilling(alpha, temperature, hint_weight, hints)
    if cache and (settings.mixup or hints):
        raise OptionError("cache with mixup or hints", remedy="The teacher must see the mixed images: leave cache out.")
    found = as_loaders(data)
    classes = len(found.classes) if isinstance(found, Data) else None
    guide = teacher if not isinstance(getattr(teacher, "module", teacher), nn.Module) else module_of(teacher)
    if isinstance(guide, nn.Module):
        _check_apart(module, guide)
    facts = {"stage": "distill", "alpha": float(alpha), "temperature": float(temperature), "cache": bool(cache),
             "hints": dict(hints or {}), "hint_weight": float(hint_weight)}  # fmt: skip
    with contextlib.ExitStack() as stack:
        stored = (
            predict(guide, only_data(found, "The teacher's logits are kept by image").train, progress=progress, task="teacher")
            if cache
            else None
        )
        follow = _from_cache(stored) if stored is not None else stack.enter_context(_running(guide, classes))
        watch = stack.enter_context(_watching(module, guide, hints)) if hints else None

        def loss(logits: Tensor, batch: Batch) -> Tensor:
            taught = follow(batch)
            if taught.shape != logits.shape:  # where a loader does not say how many classes there are
                raise DataError(
                    f"the teacher has {taught.shape[1]} classes, the student {logits.shape[1]}",
                    where="teacher",
                    remedy="Give one with as many.",
                )
            value = distillation_loss(logits, taught, batch.targets, alpha, temperature, settings.label_smoothing)
            return value if watch is None else value + hint_weight * watch()

        return fit(module, found, settings, loss=loss, on_epoch=on_epoch, facts=facts, progress=progress)


def _check_distilling(alpha: float, temperature: float, hint_weight: float, hints: object) -> None:
    if not is_number(alpha) or not 0 <= alpha <= 1 or not is_number(temperature) or not temperature > 0:
        raise OptionError(f"alpha {alpha!r}, temperature {temperature!r}", remedy="Give alpha from 0 to 1 and a temperature above 0.")
    if not is_number(hint_weight) or hint_weight < 0:
        raise OptionError(f"hint_weight {hint_weight!r}", remedy="Give a number of at least 0.")
    if hints is not None and not isinstance(hints, Mapping):
        raise OptionError(f"hints {hints!r}", remedy="Give module names, the student's to the teacher's: {'layer1': 'layer1'}.")


def _check_apart(student: nn.Module, teacher: nn.Module) -> None:
    """A shared layer would be trained and taught from at once, and in train mode for both."""
    own = {id(part) for part in (*student.modules(), *student.parameters(), *student.buffers())}
    layers = [(name, layer) for name, layer in teacher.named_modules() if not _is_function(layer)]
    parts = (*layers, *teacher.named_parameters(), *teacher.named_buffers())
    shared = next((name or "the whole module" for name, part in parts if id(part) in own), None)
    if shared is not None:
        raise OptionError(f"the teacher shares {shared} with the student", where="distill", remedy="Give a copy: copy.deepcopy(teacher).")


def _is_function(layer: nn.Module) -> bool:
    """Whether a layer holds nothing and does the same in both modes: one ReLU serves any number of nets."""
    kind = type(layer)
    return kind.__module__ == "torch.nn.modules.activation" and kind is not nn.RReLU and not [*layer.parameters(), *layer.buffers()]


def distillation_loss(
    student: Tensor, teacher: Tensor, targets: Tensor, alpha: float, temperature: float, label_smoothing: float = 0.0
) -> Tensor:
    """`(1 - alpha) * CE(student, targets) + alpha * T^2 * KL(softmax(teacher / T) || softmax(student / T))`.

    Both terms are means over the batch (the KL is summed over classes). T^2 keeps the gradient's size when T changes
    (Hinton et al., 2015, section 2).

    Args:
        student, teacher: logits (N, classes).
        targets: int64 (N,), or probabilities (N, classes).
    """
    hard = functional.cross_entropy(student, targets, label_smoothing=label_smoothing)
    soft = functional.kl_div(
        functional.log_softmax(student / temperature, 1),
        functional.log_softmax(teacher / temperature, 1),
        reduction="batchmean",
        log_target=True,
    )
    return (1 - alpha) * hard + alpha * temperature**2 * soft


def attention_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of two feature maps' attention: squares summed over channels, scaled to norm 1 an image.

    Zagoruyko and Komodakis, 2017. It needs equal heights and widths only, so a pruned student can follow a wider teacher.

    Args:
        student, teacher: (N, C, H, W); their C may differ.
    """
    maps = [functional.normalize(features.square().sum(1).flatten(1), dim=1) for features in (student, teacher)]
    return (maps[0] - maps[1]).square().sum(1).mean()


def _from_cache(stored: Tensor) -> Callable[[Batch], Tensor]:
    return lambda batch: stored[batch.indices].to(batch.images.device)


@contextlib.contextmanager
def _running(teacher: object, classes: int | None) -> Iterator[Callable[[Batch], Tensor]]:
    """A function from a batch to the teacher's logits on it."""
    if not isinstance(teacher, nn.Module):
        call = numpy_forward(teacher)
        yield lambda batch: _taught(call, batch, classes).to(batch.images.device)
        return
    home = next((tensor.device for tensor in (*teacher.parameters(), *teacher.buffers())), torch.device("cpu"))
    was_training = [child for child in teacher.modules() if child.training]
    teacher.eval()

    def follow(batch: Batch) -> Tensor:
        teacher.to(batch.images.device)
        with torch.no_grad():
            return _taught(teacher, batch, classes)

    try:
        yield follow
    finally:
        teacher.to(home)
        for child in was_training:
            child.training = True


def _taught(call: Callable[[Tensor], object], batch: Batch, classes: int | None) -> Tensor:
    return logits_of(run_model(call, batch.images, "teacher"), len(batch.images), classes, "teacher")


@contextlib.contextmanager
def _watching(student: nn.Module, teacher: object, hints: Mapping[str, str]) -> Iterator[Callable[[], Tensor]]:
    """A function that gives the mean hint loss of the latest forwards of student and teacher."""
    if not isinstance(teacher, nn.Module):
        raise OptionError("hints need a teacher that is a module", remedy="Leave hints out, or give the teacher's nn.Module.")
    seen: dict[tuple[str, str], object] = {}
    handles = []
    for who, module, names in (("student", student, list(hints)), ("teacher", teacher, list(hints.values()))):
        children = dict(module.named_modules())
        for name in names:
            if name not in children:
                raise OptionError(f"the {who} has no module {name!r}", where="hints", remedy="Names are those of named_modules().")
            handles.append(children[name].register_forward_hook(_keep(seen, (who, name))))

    def loss() -> Tensor:
        pairs = [(_map(seen, "student", mine), _map(seen, "teacher", theirs)) for mine, theirs in hints.items()]
        seen.clear()  # a module that runs now and then must not be judged by an earlier step
        for (mine, theirs), (a, b) in zip(hints.items(), pairs, strict=True):
            if a.ndim != 4 or a.shape[2:] != b.shape[2:]:
                raise OptionError(
                    f"{mine} gives {tuple(a.shape)}, {theirs} gives {tuple(b.shape)}",
                    where="hints",
                    remedy="Choose maps of equal height and width.",
                )
        return torch.stack([attention_loss(a, b) for a, b in pairs]).mean()

    try:
        yield loss
    finally:
        for handle in handles:
            handle.remove()


def _map(seen: Mapping[tuple[str, str], object], who: str, name: str) -> Tensor:
    found = seen.get((who, name))
    if not isinstance(found, Tensor):
        fact = f"gives a {type(found).__name__}" if (who, name) in seen else "did not run"
        raise OptionError(f"the {who}'s {name} {fact}", where="hints", remedy="Name modules that run in every forward and give one tensor.")
    return found


def _keep(seen: dict[tuple[str, str], object], key: tuple[str, str]) -> Callable[..., None]:
    def hook(module: nn.Module, inputs: object, output: object) -> None:
        seen[key] = output

    return hook
