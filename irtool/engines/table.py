"""The engines, a row each. Whatever loops over engines loops over this table: a new one is a package and a row here."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from irtool.engines.engine import Engine
from irtool.engines.mnn.engine import ENGINE as MNN
from irtool.engines.ncnn.engine import ENGINE as NCNN
from irtool.engines.onnxruntime.engine import ENGINE as ONNXRUNTIME
from irtool.engines.openvino.engine import ENGINE as OPENVINO
from irtool.errors import OptionError

ENGINES: Mapping[str, Engine] = MappingProxyType({row.name: row for row in (ONNXRUNTIME, MNN, OPENVINO, NCNN)})
"""By name. The first is the reference: the others are compared with it."""
QUANTISING: Mapping[str, Engine] = MappingProxyType({name: row for name, row in ENGINES.items() if row.integers is not None})
"""Those that int8 files can be written for."""
REFERENCE = next(iter(ENGINES.values()))
OTHERS = tuple(row for row in ENGINES.values() if row is not REFERENCE)


def engine(name: object) -> Engine:
    """The engine of that name.

    Raises:
        OptionError: there is none.
    """
    row = ENGINES.get(name) if isinstance(name, str) else None
    if row is None:
        raise OptionError(f"engine {name!r} does not exist", where="engine", remedy=f"Choose {' or '.join(ENGINES)}.")
    return row


def by_suffix(suffix: str) -> Engine | None:
    """The engine that has files with this suffix of its own; None if there is none."""
    return next((row for row in OTHERS if row.convert is not None and row.suffix == suffix), None)
