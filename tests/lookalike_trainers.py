"""Small classes with the calls of Lightning and of Hugging Face's Trainer: what they ask of a module, and what they write."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader


class LightningModule(nn.Module):
    """A module that says how it is trained."""

    def log(self, name: str, value: Any) -> None:
        """Take a number."""


class Trainer:
    """Lightning's: asks the module for a loss and an optimiser."""

    def __init__(self, max_epochs: int, accelerator: str, logger: bool) -> None:
        assert (accelerator, logger) == ("cpu", False)
        self._epochs = max_epochs

    def fit(self, module: LightningModule, loader: Iterable[Any]) -> None:
        """Train, each step within the optimiser's closure. As in Lightning since 2.2, modules stay in the mode that they are in."""
        self._module = module
        assert all(parameter.is_leaf for parameter in module.parameters())
        optimizer = module.configure_optimizers()
        module.zero_grad()
        for _ in range(self._epochs):
            for number, batch in enumerate(loader):

                def closure(batch: Any = batch, number: int = number) -> torch.Tensor:
                    loss = module.training_step(batch, number)
                    optimizer.zero_grad()
                    loss.backward()
                    return loss

                optimizer.step(closure)

    def save_checkpoint(self, path: str) -> None:
        """Write what a checkpoint of Lightning's holds."""
        torch.save(
            {
                "epoch": self._epochs,
                "global_step": 4,
                "pytorch-lightning_version": "2.6.0",
                "state_dict": self._module.state_dict(),
                "loops": {},
                "callbacks": {},
                "optimizer_states": [],
                "lr_schedulers": [],
            },
            path,
        )


class TrainingArguments:
    """Hugging Face's settings."""

    def __init__(
        self, folder: str, *, num_train_epochs: int, per_device_train_batch_size: int, use_cpu: bool, report_to: list[str]
    ) -> None:
        self.folder, self.epochs, self.batch = folder, num_train_epochs, per_device_train_batch_size
        assert use_cpu
        assert report_to == []


class HuggingFaceTrainer:
    """Hugging Face's: drops the columns that `forward` does not name, calls the model by keywords and takes the loss from what it returns."""

    def __init__(self, model: nn.Module, args: TrainingArguments, *, train_dataset: Sequence[dict[str, Any]]) -> None:
        self._model, self._args = model, args
        names = inspect.signature(model.forward).parameters
        self._rows = [{name: value for name, value in row.items() if name in names} for row in train_dataset]

    def train(self) -> None:
        """Train with AdamW, gradients clipped."""
        decayed = [p for name, p in self._model.named_parameters() if "bias" not in name]
        others = [p for name, p in self._model.named_parameters() if "bias" in name]
        optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}], lr=5e-3)
        self._model.train()
        for _ in range(self._args.epochs):
            for batch in DataLoader(self._rows, batch_size=self._args.batch, shuffle=True):
                outputs = self._model(**batch)
                loss = outputs["loss"] if isinstance(outputs, dict) else outputs[0]
                loss.backward()
                nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
                optimizer.step()
                self._model.zero_grad()

    def save_model(self, folder: str) -> None:
        """Write the weights."""
        Path(folder).mkdir(exist_ok=True)
        save_file(self._model.state_dict(), Path(folder) / "model.safetensors", metadata={"format": "pt"})
