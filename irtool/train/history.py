"""History of a training run: one record an epoch, as values, as CSV, as TensorBoard events."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from irtool.atomic_files import replacing
from irtool.errors import OptionError, TrainError
from irtool.extras import needed


@dataclass(frozen=True)
class Record:
    """One epoch.

    Args:
        epoch: counted from 1.
        train_loss: mean loss over the epoch's images, as trained on (with distillation, smoothing and so on).
        train_accuracy: on the augmented images, in [0, 1].
        test_loss: cross-entropy on the test split in nats; None where the epoch was not scored.
        test_accuracy: in [0, 1]; None where the epoch was not scored.
        lr: at the epoch's end.
        rate: training images a second, over all processes.
        seconds: for training and scoring.
        extra: what the stage adds (a share of small scales, say).
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    test_loss: float | None
    test_accuracy: float | None
    lr: float
    rate: float
    seconds: float
    extra: dict[str, float] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """Flat, for a table."""
        plain = asdict(self)
        extra = plain.pop("extra")
        return {**plain, **extra}


@dataclass(frozen=True)
class History:
    """A finished or interrupted run.

    Args:
        facts: the settings, the stage and its own options, the sizes of the data: plain values.
        records: one an epoch, in order.
    """

    facts: dict[str, Any]
    records: tuple[Record, ...] = ()

    @property
    def last(self) -> Record:
        """The last epoch: what a result should be quoted from."""
        return self.records[-1]

    @property
    def best(self) -> Record:
        """The epoch of the highest test accuracy. It is chosen by the test split, so it flatters: quote `last`."""
        scored = [record for record in self.records if record.test_accuracy is not None]
        return max(scored, key=lambda record: (record.test_accuracy or 0.0, record.epoch))

    def add(self, record: Record) -> History:
        """A history with one more epoch."""
        return History(self.facts, (*self.records, record))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON and for a checkpoint that is loaded with `weights_only`."""
        return {"facts": self.facts, "records": [asdict(record) for record in self.records]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> History:
        """The inverse of `to_dict`.

        Raises:
            TrainError: it is not what `to_dict` gives.
        """
        try:
            json.dumps(values)  # a tensor, say, could not be compared when a run is resumed
            facts, records = values["facts"], tuple(Record(**record) for record in values["records"])
            sound = isinstance(facts, dict) and all(_is_valid(record, number) for number, record in enumerate(records, start=1))
        except (LookupError, TypeError, ValueError) as error:
            raise TrainError(f"not a training history ({error})", remedy="Give what to_dict() gave.") from error
        if not sound:
            raise TrainError("not a training history (a value is of the wrong kind)", remedy="Give what to_dict() gave.")
        return cls(dict(facts), records)

    def write_csv(self, path: Path) -> None:
        """One row an epoch. Written whole each time, so that a resumed run has no row twice.

        Raises:
            FileError: the file cannot be written.
        """
        rows = [record.row() for record in self.records]
        columns = list(dict.fromkeys(name for row in rows for name in row))
        with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)


def _is_valid(record: Record, number: int) -> bool:
    """Whether a record is that of epoch `number`, and all its values are numbers (those of the test may be None)."""
    numbers = (value for name, value in record.row().items() if value is not None or not name.startswith("test_"))
    return record.epoch == number and all(isinstance(value, (int, float)) for value in numbers)


class TensorBoardLog:
    """Writes records as TensorBoard scalars. Needs the `tensorboard` package.

    Raises:
        OptionError: it is not installed.
    """

    def __init__(self, folder: Path, first_epoch: int) -> None:
        needed("tensorboard", OptionError)
        from torch.utils.tensorboard import SummaryWriter

        # purge_step drops what a killed run logged beyond its last checkpoint.
        self._writer = SummaryWriter(str(folder), purge_step=first_epoch)

    def add(self, record: Record) -> None:
        """Log one epoch."""
        for name, value in record.row().items():
            if name != "epoch" and value is not None:
                self._writer.add_scalar(name, value, record.epoch)
        self._writer.flush()

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()
