"""The plan as data: what it holds, how it is written, and what is refused when it is read."""

from __future__ import annotations

import json
import os
import reprlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, Literal, get_args

from irtool.atomic_files import parse_json, read_text, replacing
from irtool.errors import FileError, PlanError
from irtool.ir.pictures import html_table

Scope = Literal["global", "local", "isomorphic"]
Residual = Literal["couple", "select", "keep"]
ResidualWish = Literal["auto", "couple", "select", "keep"]
Rounding = int | Literal["auto"]
GroupKind = Literal["auto", "whole", "even"]
Allocator = Literal["greedy", "measured"]
FORMAT = 1
_REMEDY = "Pass a file that Plan.to_json wrote, or make the plan again."


_WHERE_SAID = ("budget", "limits", "stages", "groups", "allocator", "branches", "notes")
"""Fields that are written only where they say something."""


def _freeze(plan: LayerPlan | Plan, *names: str) -> None:
    """Make tuples of lists and arrays: what was proven of a plan must stay true of it."""
    for name in names:
        if not isinstance(value := getattr(plan, name), tuple | str):
            object.__setattr__(plan, name, tuple(value))


@dataclass(frozen=True)
class LayerPlan:
    """One layer in a plan.

    Attributes:
        name: module path (or node name) of the layer that makes the channels.
        parameter: the parameter that holds them, and `axis` the axis.
        total: channels before.
        removed: positions that go, sorted.
        reason: why it was left alone, wholly or in part; empty if nothing held it back.
    """

    name: str
    parameter: str
    axis: int
    total: int
    removed: tuple[int, ...]
    reason: str = ""

    def __post_init__(self) -> None:
        _freeze(self, "removed")

    @property
    def kept(self) -> int:
        """Channels after."""
        return self.total - len(self.removed)


@dataclass(frozen=True)
class Plan:
    """The channels of each layer that go, and how that was decided.

    Attributes:
        layers: every layer that makes channels, in graph order; one that is called several times once.
        criterion, ratio, scope, residual, min_channels, round_to, ignore, seed: the options of `plan`. With a budget, `ratio` is
            the fraction of channels that keeping to it removes. `round_to` is a number, or `"auto"`.
        budget: what may be left of each cost, a share of at most 1 or a number; empty where a ratio was asked for.
        limits: the largest fraction of its channels that a layer may lose, by a pattern of names.
        stages: in how many steps the channels were chosen.
        groups: whether whole groups of grouped convolutions go, or equally many channels of each.
        allocator: how a budget was shared among layers.
        branches: what additions add that goes as a whole, each by the name of the node that gives it. Its layers are not among `layers`.
        notes: what planning has to say about the plan as a whole.
    """

    layers: tuple[LayerPlan, ...]
    criterion: str = "l1"
    ratio: float = 0.5
    scope: Scope = "global"
    residual: Residual = "couple"
    min_channels: int = 1
    round_to: Rounding = 1
    ignore: tuple[str, ...] = ()
    seed: int = 0
    budget: Mapping[str, float] = field(default_factory=dict, hash=False)
    limits: Mapping[str, float] = field(default_factory=dict, hash=False)
    stages: int = 1
    groups: GroupKind = "auto"
    allocator: Allocator = "greedy"
    branches: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _freeze(self, "layers", "ignore", "branches", "notes")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        layers = [{**vars(layer), "removed": list(layer.removed)} for layer in self.layers]
        asked: dict[str, Any] = {name: dict(value) for name in ("budget", "limits") if (value := getattr(self, name))}
        asked |= {"stages": self.stages} if self.stages > 1 else {}
        asked |= {name: value for name, usual in (("groups", "auto"), ("allocator", "greedy")) if (value := getattr(self, name)) != usual}
        plain = {name: value for name, value in vars(self).items() if name not in _WHERE_SAID}
        asked |= {name: list(value) for name in ("branches", "notes") if (value := getattr(self, name))}
        return {"format": FORMAT, **plain, "ignore": list(self.ignore), "layers": layers, **asked}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """The inverse of `to_dict`.

        Raises:
            PlanError: the data is not a plan, or of a newer format; the text names the place in the data.
        """
        if isinstance(data, Mapping) and data.get("format") != FORMAT:
            raise PlanError(
                f"plan format {reprlib.repr(data.get('format'))}, expected {FORMAT}",
                remedy="Make the plan again with this version of irtool.",
            )
        fields = _fields(data, _PLAN, ("layers",), "")
        del fields["format"]
        layers = tuple(_layer(layer, f"layers[{number}]") for number, layer in enumerate(fields.pop("layers")))
        check_once(layers)
        made = cls(layers, **{**fields, **{name: tuple(fields.get(name, ())) for name in ("ignore", "branches", "notes")}})
        # Any criterion's name is right: carrying a plan out does not ask for it, and users register their own.
        check_values(made.ratio, made.scope, made.residual, made.min_channels, made.round_to, made.seed)
        check_choice("groups", made.groups, get_args(GroupKind))
        check_choice("allocator", made.allocator, get_args(Allocator))
        return made

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as JSON."""
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=1) + "\n")

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> Plan:
        """Read a plan.

        Raises:
            FileError: the file is missing or is not JSON.
            PlanError: it is JSON, but no plan.
        """
        try:
            data = parse_json(read_text(path))
        except OSError as error:
            raise FileError(f"cannot read the plan ({error.strerror})", where=str(path), remedy="Check the path.") from error
        except ValueError as error:
            twice = f" ({error})" if "named twice" in str(error) else ""
            raise FileError(f"not JSON, or cut off{twice}", where=str(path), remedy="Pass a file that Plan.to_json wrote.") from error
        try:
            return cls.from_dict(data)
        except PlanError as error:
            where = f"{path}, {error.where}" if error.where else str(path)
            raise PlanError(error.what, where=where, remedy=error.remedy) from error

    @property
    def removed(self) -> int:
        """Channels removed over all layers."""
        return sum(len(layer.removed) for layer in self.layers)

    def __str__(self) -> str:
        return self.summary()

    def __repr__(self) -> str:
        total = sum(layer.total for layer in self.layers)
        return f"<Plan: {total - self.removed:,} of {total:,} channels stay in {len(self.layers)} layers; {self.criterion}, {self.scope}>"

    def _repr_html_(self) -> str:
        rows = [(layer.name, layer.total, layer.kept, layer.reason) for layer in self.layers]
        return html_table(("layer", "channels", "kept", "why not more"), rows, repr(self)[1:-1])

    def summary(self) -> str:
        """A line a layer: kept of total, or why not."""
        width = max((len(layer.name) for layer in self.layers), default=0)
        lines = [
            f"{layer.name:<{width}}  {layer.kept:>5} of {layer.total:<5}{'  ' + layer.reason if layer.reason else ''}".rstrip()
            for layer in self.layers
        ]
        total = sum(layer.total for layer in self.layers)
        asked = ", ".join(f"{kind} {_wish(value)}" for kind, value in self.budget.items()) or f"ratio {self.ratio:g}"
        lines.append(
            f"{'total':<{width}}  {total - self.removed:>5} of {total:<5}  {self.criterion}, {self.scope}, {asked}, residual {self.residual}"
        )
        gone = [f"{name}: what it adds goes, with all that only it needs" for name in self.branches]
        return "\n".join([*lines, *gone, *self.notes])


def _wish(value: float) -> str:
    return f"{100 * value:g} %" if value <= 1 else f"{value:,.0f}"


@dataclass(frozen=True)
class _Kind:
    """The values that a field may hold, in words for the message and as a test."""

    words: str
    fits: Callable[[Any], bool]


_TEXT = _Kind("a text", lambda value: isinstance(value, str))
_NUMBER = _Kind("a number", lambda value: isinstance(value, Real) and not isinstance(value, bool))
_WHOLE = _Kind("a whole number", lambda value: isinstance(value, Integral) and not isinstance(value, bool))
_STEP = _Kind('a whole number or "auto"', lambda value: value == "auto" if isinstance(value, str) else _WHOLE.fits(value))
_COUNT = _Kind("a whole number from 0 up", lambda value: _WHOLE.fits(value) and value >= 0)


def _list(words: str, of: _Kind | None = None) -> _Kind:
    return _Kind(words, lambda value: isinstance(value, list | tuple) and (of is None or all(map(of.fits, value))))


_LAYER = {
    "name": _TEXT, "parameter": _TEXT, "axis": _COUNT, "total": _COUNT, "removed": _list("a list of whole numbers from 0 up", _COUNT),
    "reason": _TEXT,
}  # fmt: skip
_OPTIONS = {
    "ratio": _NUMBER, "scope": _TEXT, "residual": _TEXT, "min_channels": _WHOLE, "round_to": _STEP, "seed": _WHOLE,
}  # fmt: skip
_NAMES = _list("a list of names", _TEXT)
_TABLE = _Kind(
    "a table of numbers by name",
    lambda value: isinstance(value, Mapping) and all(_TEXT.fits(key) and _NUMBER.fits(entry) for key, entry in value.items()),
)
_PLAN = {
    "format": _WHOLE, "layers": _list("a list of layers"), "criterion": _TEXT, "ignore": _NAMES, "budget": _TABLE, "limits": _TABLE,
    "stages": _COUNT, "groups": _TEXT, "allocator": _TEXT, "branches": _NAMES, "notes": _list("a list of texts", _TEXT), **_OPTIONS,
}  # fmt: skip


def _fields(data: Any, kinds: Mapping[str, _Kind], needed: Collection[str], place: str) -> dict[str, Any]:
    """The fields of one object in the data, each of its kind."""
    if not isinstance(data, Mapping):
        raise PlanError(f"not a plan: {reprlib.repr(data)} is no table of names and values", where=place or None, remedy=_REMEDY)
    odd = next((key for key in data if key not in kinds), None) or next((key for key in needed if key not in data), None)
    if odd is not None:
        what = "no plan has this" if odd in data else "missing"
        raise PlanError(f"not a plan: {what}", where=_within(place, odd), remedy=_REMEDY)
    for key, value in data.items():
        _check_kind(value, kinds[key], _within(place, key))
    return dict(data)


def _within(place: str, key: object) -> str:
    return f"{place}.{key}" if place else str(key)


def _check_kind(value: Any, kind: _Kind, where: str, remedy: str = _REMEDY) -> None:
    if not kind.fits(value):
        raise PlanError(f"{reprlib.repr(value)} is not {kind.words}", where=where, remedy=remedy)


def _layer(data: Any, place: str) -> LayerPlan:
    fields = _fields(data, _LAYER, ("name", "parameter", "axis", "total", "removed"), place)
    check_positions(fields["removed"], fields["total"], f"{place}.removed")
    return LayerPlan(**{**fields, "removed": tuple(sorted(fields["removed"]))})


def check_positions(removed: Iterable[int], total: int, where: str) -> None:
    """Refuse positions that a layer of `total` channels does not have, or that come twice.

    Raises:
        PlanError: the first such position is named.
    """
    seen: set[int] = set()
    for position in removed:
        if not 0 <= position < total:
            raise PlanError(
                f"the plan removes channels that do not exist: {position} of {total}, counted from 0", where=where, remedy=_REMEDY
            )
        if position in seen:
            raise PlanError(f"the plan removes channel {position} twice", where=where, remedy="Name each channel once.")
        seen.add(position)


def check_once(layers: Iterable[LayerPlan]) -> None:
    """Refuse a plan that names a parameter's axis twice: the second would be carried out with the first.

    Raises:
        PlanError: the layer is named.
    """
    seen: set[tuple[str, int]] = set()
    for layer in layers:
        if (layer.parameter, layer.axis) in seen:
            raise PlanError(f"the plan names {layer.parameter} twice", where=layer.name, remedy="Name each layer once.")
        seen.add((layer.parameter, layer.axis))


def check_values(ratio: float, scope: str, residual: str, min_channels: int, round_to: Rounding, seed: int = 0) -> None:
    """Refuse options that no plan can have.

    Raises:
        PlanError: the option and its allowed values are named.
    """
    values = {"ratio": ratio, "scope": scope, "residual": residual, "min_channels": min_channels, "round_to": round_to, "seed": seed}
    for name, kind in _OPTIONS.items():
        _check_kind(values[name], kind, name, f"Give {kind.words}.")
    check_choice("scope", scope, get_args(Scope))
    check_choice("residual", residual, ("couple", "select", "keep"))
    if not 0 <= ratio < 1:
        raise PlanError(f"ratio {ratio} is not a fraction of channels to remove", remedy="Give 0 <= ratio < 1, e.g. 0.5 to remove half.")
    if min_channels < 1 or (round_to != "auto" and round_to < 1):
        raise PlanError(f"min_channels {min_channels} and round_to {round_to} must be at least 1", remedy="Leave them out for no limit.")
    if seed < 0:
        raise PlanError(f"seed {seed} is negative", remedy="Give 0 or a larger number.")


def check_names(name: str, value: Any) -> tuple[str, ...]:
    """A name, or several, as a tuple. Raises PlanError for what is neither."""
    names = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, Iterable) else value
    if not _NAMES.fits(names):
        raise PlanError(
            f"{reprlib.repr(value)} is not {_NAMES.words}", where=name, remedy="Give a name, or a list of names; leave it out for none."
        )
    return tuple(names)


def check_choice(name: str, value: str, allowed: Collection[str]) -> None:
    """Refuse a value that is none of `allowed`. Raises PlanError, which names them."""
    if value not in allowed:
        raise PlanError(f"{name} {value!r} does not exist", remedy=f"Choose one of {', '.join(allowed)}.")
