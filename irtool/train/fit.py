"""The loop that every training stage shares."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from irtool.errors import DataError, OptionError, TrainError
from irtool.progress import Progress, Status, Throttle, silent
from irtool.tensor_defaults import real_tensors
from irtool.train.batch import Batch
from irtool.train.checkpoint import restore, save_checkpoint
from irtool.train.data.dataset import Data
from irtool.train.data.loaders import Loaders, as_loaders
from irtool.train.distributed import launch, returning, shared_batch_statistics
from irtool.train.ema import Average
from irtool.train.evaluate import check_labels, logits_of, module_of, run_model
from irtool.train.feed import Place, check_scored, feed_of
from irtool.train.history import History, Record, TensorBoardLog
from irtool.train.hooks import Hooks, Logger, MakeOptimizer, OnEpoch, OnStep, numbers_of, optimizer_of, stalled
from irtool.train.settings import Settings, share_of_peak

if TYPE_CHECKING:
    from lightning_fabric import Fabric

NAN_CHECK = 10
"""Steps between two looks at the loss: looking waits for the device."""


Trainable = Data | Loaders | Iterable[Any] | tuple[Iterable[Any], Iterable[Any] | None]
"""Data to train on: a dataset that irtool loaded, a DataLoader, or two of them, the second of which is scored."""
Loss = Callable[[Tensor, Batch], Tensor]
"""From logits (N, classes) and the batch to a scalar, the mean over the batch."""
Penalty = Callable[[nn.Module, float], None]
"""Adds to the gradients of a module, between backward and the step; the float is the position in [0, 1] of the run."""


@real_tensors()
def fit(
    model: object,
    data: Trainable,
    settings: Settings | None = None,
    *,
    loss: Loss | None = None,
    penalty: Penalty | None = None,
    on_epoch: OnEpoch | None = None,
    on_step: OnStep | None = None,
    optimizer: str | MakeOptimizer | None = None,
    logger: Logger | None = None,
    facts: Mapping[str, Any] | None = None,
    progress: Progress = silent,
    **changes: Any,
) -> History:
    """Train a model in place, by SGD unless another optimiser is chosen.

    The run is a function of the model, the data and the settings: order, augmentation and dropout are derived from the seed
    and the epoch, and the caller's random state is left alone. On a CPU with the same number of threads, a run that was
    killed and resumed ends in the same bits as one that was not.

    Under `torchrun`, each process takes its share of every step's batch; batch norms use the statistics of all shares.

    Args:
        model: an `nn.Module`, or a graph. In eval mode, and in its own tensors on its own device, when training ends.
        data: what to train on. Its test split is scored, never trained on. Or a DataLoader of one's own, or two of them, (training, test): then
            the batches, their order and augmentation are the loader's (`batch_size`, `crop`, `flip` and `mixup` are refused).
        settings: the options; `changes` are options by name that replace some of them: `fit(net, data, epochs=3, lr=0.05)`.
        loss: default: cross-entropy with the settings' label smoothing.
        penalty: see `Penalty`.
        on_epoch, on_step: called after each epoch and each step: see `OnEpoch`, `OnStep`.
        optimizer: "sgd" or "adamw"; or what makes an optimiser of one's own from the list of parameters: `lambda p: torch.optim.RMSprop(p, lr=1e-3)`. Its groups'
            learning rates are scaled by the schedule; `lr`, `momentum`, `nesterov` and `weight_decay` of the settings have no say.
        logger: anything with `log(dict)`, called with each epoch's numbers (a run of Weights & Biases, say).
        facts: plain values that tell this stage from others; kept in the history, and compared on resuming.
        progress: told about each epoch's progress.

    Raises:
        OptionError: an option that can never work.
        DataError: the model does not fit the data, or the data's labels not its classes.
        TrainError: the loss is no longer finite, nothing can be trained, or a checkpoint does not belong to this run.
        FileError: a checkpoint cannot be written.
    """
    named = isinstance(optimizer, str)
    settings = Settings.merged(settings or Settings(), changes | ({"optimizer": optimizer} if named else {}))
    make = None if named else cast(MakeOptimizer | None, optimizer)
    module = module_of(model)
    _check_trainable(module)
    found = as_loaders(data)
    check_scored(found)
    with returning(module):
        run = _Run(
            module,
            found,
            settings,
            loss or cross_entropy(settings.label_smoothing),
            penalty,
            Hooks(make, on_step, on_epoch, logger),
            facts or {},
            progress,
        )
        devices = [run.fabric.device.index or 0] if run.fabric.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices=devices), shared_batch_statistics(module, run.fabric.world_size):
                return run.train()
        finally:
            module.eval()


def _check_trainable(module: nn.Module) -> None:
    if any(nn.parameter.is_lazy(tensor) for tensor in (*module.parameters(), *module.buffers())):
        raise TrainError("a lazy layer has no weights yet", where="model", remedy="Run the model once on a batch: model(data.sample(2)).")
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise TrainError("no parameter requires a gradient", where="model", remedy="Unfreeze some: parameter.requires_grad_(True).")


def cross_entropy(label_smoothing: float = 0.0) -> Loss:
    """The usual loss: mean cross-entropy in nats against the batch's targets."""
    return lambda logits, batch: functional.cross_entropy(logits, batch.targets, label_smoothing=label_smoothing)


class _Run:
    """The state of one run. Lives as long as `fit`."""

    def __init__(
        self,
        module: nn.Module,
        data: Data | Loaders,
        settings: Settings,
        loss: Loss,
        penalty: Penalty | None,
        hooks: Hooks,
        facts: Mapping[str, Any],
        progress: Progress,
    ) -> None:
        self.module, self.settings = module, settings
        self.loss, self.penalty, self.hooks, self.progress = loss, penalty, hooks, progress
        self.fabric: Fabric = launch(settings)
        if settings.channels_last:
            module.to(memory_format=torch.channels_last)
        self.forward, self.optimizer = self.fabric.setup(module, optimizer_of(module, settings, hooks.optimizer))
        self.average = Average(module, settings.ema) if settings.ema else None
        world = self.fabric.world_size
        if world > 1 and settings.time_budget:
            raise OptionError("a time budget with several processes", remedy="Their clocks differ: give epochs instead.")
        self.feed = feed_of(data, settings, Place(self.fabric.global_rank, world, self.fabric.device))
        self.steps = self.feed.steps
        self.history = History({**settings.identity(), **facts, "processes": world, **self.feed.facts()})
        self.throttle = Throttle()

    def train(self) -> History:
        settings = self.settings
        self._resume()
        first, log = len(self.history.records) + 1, None
        self.begun, self.first_position = time.perf_counter(), (first - 1) / settings.epochs
        if settings.tensorboard and settings.out and self.fabric.is_global_zero:
            log = TensorBoardLog(settings.out / "tensorboard", first)
        with contextlib.closing(log) if log else contextlib.nullcontext():
            for epoch in range(first, settings.epochs + 1):
                self._epoch(epoch, log)
                if self._over_budget() or stalled(self.history, settings.patience):
                    break
        if self.average:
            self.average.place()
        return self.history

    def _epoch(self, epoch: int, log: TensorBoardLog | None) -> None:
        settings, begun = self.settings, time.perf_counter()
        loss, accuracy, images = self._train(epoch)
        seconds = time.perf_counter() - begun
        due = epoch == settings.epochs or self._over_budget() or bool(settings.evaluate_every and epoch % settings.evaluate_every == 0)
        scored = due and self.feed.scored
        with self.average.swapped() if self.average else contextlib.nullcontext():
            test_loss, test_accuracy = self._score(epoch) if scored else (None, None)
            lr = float(self.optimizer.param_groups[0]["lr"])
            record = Record(epoch, loss, accuracy, test_loss, test_accuracy, lr, images / seconds, time.perf_counter() - begun)
            if self.hooks.on_epoch:
                # Python's numbers: numpy's would make a checkpoint that cannot be loaded again.
                extra = {name: float(value) for name, value in (self.hooks.on_epoch(self.module, record) or {}).items()}
                record = replace(record, extra=extra)
        self.history = self.history.add(record)
        if settings.out and self.fabric.is_global_zero:
            self._keep(scored)
            self.history.write_csv(settings.out / "log.csv")
        if log:
            log.add(record)
        if self.hooks.logger is not None and self.fabric.is_global_zero:
            self.hooks.logger.log(numbers_of(record))

    def _train(self, epoch: int) -> tuple[float, float, int]:
        """Train one epoch; returns mean loss, accuracy and the number of images, over all processes."""
        settings, device = self.settings, self.fabric.device
        # Processes differ in their dropout, as the images that they drop from differ.
        torch.manual_seed(int(np.random.SeedSequence([settings.seed, epoch, self.fabric.global_rank]).generate_state(1, np.uint64)[0]) >> 1)
        self.module.train()
        total_loss, correct, done = torch.zeros((), device=device), torch.zeros((), device=device), 0
        began = time.perf_counter()
        for step, batch in enumerate(islice(self.feed.epoch(epoch), self.steps)):
            position = self._position(epoch, step)
            loss, logits = self._step(batch, position, first=step == 0)
            total_loss += loss * len(batch.labels)
            if self.hooks.on_step is not None:
                self.hooks.on_step(self.module, (epoch - 1) * self.steps + step + 1, float(loss))
            correct += (logits.argmax(1) == batch.labels).sum()
            done += len(batch.labels)
            last = step + 1 == self.steps
            if last or (step + 1) % NAN_CHECK == 0:
                self._check(float(total_loss), epoch, step + 1)
            if self.throttle.due(last):
                self._report(epoch, step + 1, float(total_loss) / done, float(correct) / done, done / (time.perf_counter() - began))
            if settings.time_budget and self._over_budget():
                break
        if not done:
            raise DataError(
                "the loader gave no batch", where="DataLoader", remedy="Give one that can be read once an epoch, not only once."
            )
        sums = self._sum(torch.stack([total_loss, correct, torch.tensor(float(done), device=device)]))
        return float(sums[0] / sums[2]), float(sums[1] / sums[2]), int(sums[2])

    def _step(self, batch: Batch, position: float, first: bool) -> tuple[Tensor, Tensor]:
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * share_of_peak(self.settings, position)
        images = batch.images.to(memory_format=torch.channels_last) if self.settings.channels_last else batch.images
        output = run_model(self.forward, images) if first else self.forward(images)
        logits = logits_of(output, len(batch.labels), self.feed.classes)
        if self.feed.classes is None:
            check_labels(batch.labels, logits)
        with self.fabric.autocast():
            loss = self.loss(logits, batch)
        if not loss.requires_grad:
            raise TrainError(
                "the loss depends on no parameter that can be trained",
                where="model",
                remedy="Unfreeze some that the forward uses, and keep detach() and no_grad out of it.",
            )
        self.fabric.backward(loss)
        if self.penalty:
            self.penalty(self.module, position)
        if self.settings.clip:
            self.fabric.clip_gradients(self.forward, self.optimizer, max_norm=self.settings.clip, error_if_nonfinite=False)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average:
            self.average.update()
        return loss.detach(), logits.detach()

    def _position(self, epoch: int, step: int) -> float:
        position = (epoch - 1 + (step + 0.5) / self.steps) / self.settings.epochs
        return max(position, self._spent()) if self.settings.time_budget else position

    def _spent(self) -> float:
        return min(1.0, (time.perf_counter() - self.begun) / self.settings.time_budget)

    def _over_budget(self) -> bool:
        return bool(self.settings.time_budget) and self._spent() >= 1

    def _check(self, loss: float, epoch: int, step: int) -> None:
        if not np.isfinite(loss):
            kept = f" The weights after epoch {epoch - 1} are in {self.settings.out}." if self.settings.out and epoch > 1 else ""
            raise TrainError(
                f"the loss is no longer finite by step {step} of epoch {epoch}",
                where="training",
                remedy=f"Lower lr (now {self.settings.lr:g}), add warmup=1, or clip gradients with clip=1.{kept}",
            )

    def _report(self, epoch: int, step: int, loss: float, accuracy: float, rate: float) -> None:
        position = self._position(epoch, step)
        fresh = max(position - self.first_position, 1e-9)
        left = (time.perf_counter() - self.begun) * max(0.0, 1 - position) / fresh
        done, total = (count * max(1, self.feed.batch) * self.fabric.world_size for count in (step, self.steps))
        if self.fabric.is_global_zero:
            task = f"train epoch {epoch}/{self.settings.epochs}"
            self.progress(Status(task, done, total, loss, accuracy, rate * self.fabric.world_size, left))

    def _score(self, epoch: int) -> tuple[float, float]:
        shown = self.progress if self.fabric.is_global_zero else silent
        score = self.feed.score(self.module, shown, task=f"test epoch {epoch}/{self.settings.epochs}")
        values = torch.tensor([score.loss * score.count, score.accuracy * score.count, score.count], dtype=torch.float64)
        sums = self._sum(values)
        return float(sums[0] / sums[2]), float(sums[1] / sums[2])

    def _sum(self, values: Tensor) -> Tensor:
        return self.fabric.all_reduce(values.to(self.fabric.device), reduce_op="sum") if self.fabric.world_size > 1 else values  # type: ignore[return-value]

    def _keep(self, scored: bool) -> None:
        assert self.settings.out is not None
        state = {
            "model": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.average.weights if self.average else None,
            "history": self.history.to_dict(),
        }
        # Best first: a run killed between the two repeats the epoch and writes both again.
        if scored and self.history.best == self.history.last:
            save_checkpoint(self.settings.out / "best.pt", state)
        save_checkpoint(self.settings.out / "last.pt", state)

    def _resume(self) -> None:
        path = self.settings.out / "last.pt" if self.settings.out else None
        if self.settings.resume and path is not None and path.exists():
            self.history = restore(path, self.history.facts, self.module, self.optimizer, self.average)
