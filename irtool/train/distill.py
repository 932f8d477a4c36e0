"""Finetuning, and distillation from a teacher (Hinton, Vinyals and Dean, 2015)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from irtool.errors import OptionError
from irtool.train.data import Data
from irtool.train.evaluate import logits_of, module_of, predict, run_model
from irtool.train.fit import Batch, OnEpoch, fit
from irtool.train.history import History
from irtool.train.progress import Progress, silent
from irtool.train.settings import Settings

FINETUNE = Settings(epochs=10, lr=0.01)
"""The published settings for finetuning and distillation: a tenth of the rate for training from scratch."""


def finetune(
    model: object,
    data: Data,
    settings: Settings = FINETUNE,
    *,
    on_epoch: OnEpoch | None = None,
    progress: Progress = silent,
    **changes: Any,
) -> History:
    """Train a pruned model further, in place, at a small learning rate (0.01 unless told otherwise). See `fit`."""
    return fit(model, data, settings, on_epoch=on_epoch, facts={"stage": "finetune"}, progress=progress, **changes)


def distill(
    student: object,
    teacher: object,
    data: Data,
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
            training device, and is put back as it was.
        data, settings, on_epoch, progress, changes: see `fit`.
        alpha: weight of the teacher against the labels, in [0, 1].
        temperature: T; larger is softer.
        cache: run the teacher once over the plain training images and keep its logits, instead of once a step on the images
            that the student sees. Faster, and less exact: the student's images are cropped and mirrored. Not with mixup.
        hints: module names, student's to teacher's, whose outputs (N, C, H, W) are made alike too: see `attention_loss`.
            Their heights and widths must agree; their channels need not.
        hint_weight: factor of the hints' mean loss.

    Raises:
        OptionError: a value that can never work, or an unknown module in `hints`.
        DataError, TrainError, FileError: see `fit`.
    """
    settings = Settings.settle(settings, changes)
    module = module_of(student)
    _check_distilling(alpha, temperature, cache and bool(settings.mixup or hints))
    guide = teacher if not isinstance(getattr(teacher, "module", teacher), nn.Module) else module_of(teacher)
    if guide is module:
        raise OptionError("student and teacher are the same module", remedy="Give a copy (copy.deepcopy) as the teacher.")
    facts = {
        "stage": "distill",
        "alpha": alpha,
        "temperature": temperature,
        "cache": cache,
        "hints": dict(hints or {}),
        "hint_weight": hint_weight,
    }
    with contextlib.ExitStack() as stack:
        stored = predict(guide, data.train, progress=progress, task="teacher") if cache else None
        follow = _from_cache(stored) if stored is not None else stack.enter_context(_running(guide, len(data.classes)))
        watch = stack.enter_context(_watching(module, guide, hints)) if hints else None

        def loss(logits: Tensor, batch: Batch) -> Tensor:
            value = distillation_loss(logits, follow(batch), batch.targets, alpha, temperature, settings.label_smoothing)
            return value if watch is None else value + hint_weight * watch()

        return fit(module, data, settings, loss=loss, on_epoch=on_epoch, facts=facts, progress=progress)


def _check_distilling(alpha: float, temperature: float, clash: bool) -> None:
    if not 0 <= alpha <= 1 or not temperature > 0:
        raise OptionError(f"alpha {alpha}, temperature {temperature}", remedy="Give alpha from 0 to 1 and a temperature above 0.")
    if clash:
        raise OptionError("cache with mixup or hints", remedy="The teacher must see the mixed images: leave cache out.")


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
def _running(teacher: object, classes: int) -> Iterator[Callable[[Batch], Tensor]]:
    """A function from a batch to the teacher's logits on it."""
    if not isinstance(teacher, nn.Module):
        yield lambda batch: logits_of(teacher(batch.images.cpu().numpy()), classes, "teacher").to(batch.images.device)  # type: ignore[operator]
        return
    home = next((tensor.device for tensor in (*teacher.parameters(), *teacher.buffers())), torch.device("cpu"))
    was_training = [child for child in teacher.modules() if child.training]
    teacher.eval()

    def follow(batch: Batch) -> Tensor:
        teacher.to(batch.images.device)
        with torch.no_grad():
            return logits_of(run_model(teacher, batch.images), classes, "teacher")

    try:
        yield follow
    finally:
        teacher.to(home)
        for child in was_training:
            child.training = True


@contextlib.contextmanager
def _watching(student: nn.Module, teacher: object, hints: Mapping[str, str]) -> Iterator[Callable[[], Tensor]]:
    """A function that gives the mean hint loss of the latest forwards of student and teacher."""
    if not isinstance(teacher, nn.Module):
        raise OptionError("hints need a teacher that is a module", remedy="Leave hints out, or give the teacher's nn.Module.")
    seen: dict[tuple[str, str], Tensor] = {}
    handles = []
    for who, module, names in (("student", student, list(hints)), ("teacher", teacher, list(hints.values()))):
        children = dict(module.named_modules())
        for name in names:
            if name not in children:
                raise OptionError(f"the {who} has no module {name!r}", where="hints", remedy="Names are those of named_modules().")
            handles.append(children[name].register_forward_hook(_keep(seen, (who, name))))

    def loss() -> Tensor:
        pairs = [(seen["student", mine], seen["teacher", theirs]) for mine, theirs in hints.items()]
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


def _keep(seen: dict[tuple[str, str], Tensor], key: tuple[str, str]) -> Callable[..., None]:
    def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
        seen[key] = output

    return hook
