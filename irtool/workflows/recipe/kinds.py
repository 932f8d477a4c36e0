"""Kinds of a recipe's steps: their options, what they need, and what they do. A new step is one row of `KINDS`."""

from __future__ import annotations

import inspect
import json
import typing
from collections.abc import Callable, Mapping
from typing import Any

import irtool
from irtool.archive import load
from irtool.engines import export_onnx
from irtool.engines.table import OTHERS, REFERENCE
from irtool.errors import BackendError, ExportError, OptionError
from irtool.passes import FoldBatchNorm, Prune, RecalibrateBatchNorm, ReduceWidth
from irtool.pruning.plan import GroupKind, check_choice
from irtool.pruning.planner import check_options
from irtool.train import Settings, evaluate, recover
from irtool.train.sparse import strength_of
from irtool.train.stages import STAGES
from irtool.train.stages import train as train_stage
from irtool.workflows.compress.built import FILES
from irtool.workflows.compress.engine_files import engine_files
from irtool.workflows.equality.chain import (
    Chain,
    engine_link,
    folded_links,
    masked_links,
    onnx_link,
)
from irtool.workflows.equality.chain_inputs import takes_any_batch
from irtool.workflows.recipe.kind import Context, Kind, Made, Options
from irtool.workflows.recipe.quantize import QUANTIZE, check_quantize

BATCH = 64
"""Calibration images at a time."""


def _training(stage: str) -> Callable[[Context, Options], Made]:
    def run(context: Context, options: Options) -> Made:
        own = {name: value for name, value in options.items() if name in STAGES[stage].options}
        changes = {"seed": context.seed, **{name: value for name, value in options.items() if name not in own}}
        if "teacher" in own:
            own["teacher"] = load(context.results[own["teacher"]] / FILES["model"])
        # Killed in the middle, the step goes on from its last epoch.
        changes |= {"out": context.folder, "resume": True}
        graph = STAGES[stage].begun(context.graph.clone())
        history = train_stage(stage, graph, context.data, changes, own, context.progress)
        return Made(graph, history.last.test_accuracy, (), history.to_dict())

    return run


def _prune(context: Context, options: Options) -> Made:
    choice = {name: value for name, value in options.items() if name in _PLAN}
    plan = irtool.plan(context.graph, **{"seed": context.seed, **choice})
    images = options.get("calibrate", 0)
    calibration = [(context.data.sample(images),)] if images else None
    constants = options.get("constants", "absorb")
    made = Prune(plan, constants, calibration)(context.graph)
    links = masked_links(context.graph, plan, made.graph, context.inputs(), constants, calibration)
    Chain(tuple(links)).require(unchecked=options.get("allow_unchecked", False))
    plan.to_json(context.folder / FILES["plan"])
    return Made(made.graph, None, made.notes)


def _recover(context: Context, options: Options) -> Made:
    choice = {name: value for name, value in options.items() if name in _PLAN and name != "seed"}
    own = {name: value for name, value in options.items() if name in _RECOVER and name != "teacher"}
    changes = {name: value for name, value in options.items() if name not in choice and name not in own and name != "teacher"}
    teacher = load(context.results[options["teacher"]] / FILES["model"]) if "teacher" in options else None
    plan = irtool.plan(context.graph, **{"seed": context.seed, **choice})
    found = recover(context.graph, plan, context.data, teacher=teacher, progress=context.progress, **own, **changes)
    plan.to_json(context.folder / FILES["plan"])
    notes = [
        f"{one.name}: loss {one.loss:.3f}, {100 * one.accuracy:.1f} % of the images held back{'' if one.kept else ': not kept'}"
        for one in found.attempts
    ]
    return Made(found.graph, None, tuple(notes), found.history.to_dict() if found.history else None)


def _fold(context: Context, options: Options) -> Made:
    made = FoldBatchNorm()(context.graph)
    Chain(tuple(folded_links(context.graph, made.graph, context.inputs()))).require()
    return Made(made.graph, None, made.notes)


def _recalibrate(context: Context, options: Options) -> Made:
    data, seen = context.data, {name: value for name, value in options.items() if name in _SEEN}
    # As training shows them: on a published net that is worth six points over plain images (docs/results.md).
    settings = Settings.merged(Settings(), seen)
    augment = settings.augmentation(data.flip, data.preprocessing.size) if options.get("augment", True) else None
    batches = data.sample(options.get("images", 1024), context.seed, augment).split(BATCH)
    made = RecalibrateBatchNorm(batches, options.get("method", "pooled"))(context.graph)
    return Made(made.graph, None, made.notes)


def _reduce_width(context: Context, options: Options) -> Made:
    made = ReduceWidth(**{"seed": context.seed, **options})(context.graph)
    return Made(made.graph, None, made.notes)


def _export(context: Context, options: Options) -> Made:
    onnx = context.folder / FILES["onnx"]
    metadata = {
        "irtool.preprocessing": json.dumps(context.data.preprocessing.to_dict()),
        "irtool.classes": json.dumps(list(context.data.classes)),
    }
    export_onnx(context.graph, onnx, opset=options.get("opset", 17), dynamic_batch=takes_any_batch(context.graph), metadata=metadata)
    others = engine_files(onnx, context.inputs())  # an engine that refuses the model is left out, as by `compress`
    Chain(others.links).require()
    files = dict.fromkeys((onnx, *others.files.values()))
    return Made(context.graph, None, (*(f"{path.name}: {path.stat().st_size:,} bytes" for path in files), *others.notes))


def _verify(context: Context, options: Options) -> Made:
    folder, inputs = context.results["export"], context.inputs()
    made, left_out, links = {REFERENCE: folder / FILES["onnx"]}, list[str](), [onnx_link(context.graph, folder / FILES["onnx"], inputs)]
    for row in (row for row in OTHERS if row.installed):
        path = folder / FILES[row.kind]
        try:
            if path.exists():  # else `export` said why there is none
                links.append(engine_link(row, folder / FILES["onnx"], path, inputs))
                made[row] = path
        except (ExportError, BackendError) as error:
            left_out.append(f"{row.title} is left out: {error.what}")
    chain = Chain(tuple(links))
    chain.require()
    notes = [*left_out, *(f"{link.left} = {link.right}: largest difference {link.max_abs:.1e}" for link in chain.links)]
    for row, path in made.items():
        score = evaluate(row.session(path, None).run, context.data, progress=context.progress, task=f"evaluate in {row.name}")
        notes.append(f"{row.name}: {100 * score.accuracy:.2f} % of {score.count:,} test images")
    return Made(context.graph, None, tuple(notes))


_PLAN = {
    "criterion": str,
    "ratio": float,
    "scope": str,
    "residual": str,
    "min_channels": int,
    "round_to": int | str,
    "groups": str,
    "ignore": tuple[str, ...],
    "seed": int,
}
_RECOVER = {"seconds": float, "calibrate": int, "held_back": int, "teacher": str}
_STAGE_OPTIONS = {"strength": float | str, "share": float, "bound": float, "ignore": tuple[str, ...], "teacher": str, "alpha": float,
                  "temperature": float, "cache": bool, "engine": str, "weight_bits": int, "weights_only": bool}  # fmt: skip


def _check_strength(_name: str, value: Any) -> None:
    if value != "auto":
        strength_of(value)


def _check_alpha(_name: str, value: Any) -> None:
    if not 0 <= value <= 1:
        raise OptionError(f"alpha {value:g}", remedy="Give alpha from 0 to 1.")


def _check_temperature(_name: str, value: Any) -> None:
    if not value > 0:
        raise OptionError(f"temperature {value:g}", remedy="Give a temperature above 0.")


_STAGE_CHECKS: Mapping[str, Callable[[str, Any], None]] = {
    "strength": _check_strength,
    "alpha": _check_alpha,
    "temperature": _check_temperature,
    "engine": check_quantize,
    "weight_bits": check_quantize,
}


def _check_training(name: str, value: Any) -> None:
    if name in _STAGE_CHECKS:
        _STAGE_CHECKS[name](name, value)
    elif name not in _STAGE_OPTIONS:
        Settings.merged(Settings(), {name: value})


def _check_prune(name: str, value: Any) -> None:
    if name == "constants" and value not in ("absorb", "drop"):
        raise OptionError(f"constants {value!r} does not exist", remedy="Choose absorb or drop.")
    defaults = {name: parameter.default for name, parameter in inspect.signature(check_options).parameters.items()}
    usual: dict[str, Any] = {"criterion": "l1", "ratio": 0.5, "scope": "global", "residual": "couple", "min_channels": 1, "round_to": 1}
    if name == "groups":
        check_choice("groups", value, typing.get_args(GroupKind))
    if name in defaults:
        check_options(**{**usual, name: value})


def _check_recover(name: str, value: Any) -> None:
    if name in _RECOVER:
        if name != "teacher" and value < 0:
            raise OptionError(f"{name} {value:g}", remedy="Give a number of at least 0.")
    elif name in _PLAN:
        _check_prune(name, value)
    else:
        _check_training(name, value)


def _check_recalibrate(name: str, value: Any) -> None:
    if name == "images" and value < 2:
        raise OptionError(f"images {value}", remedy="Give at least two images.")
    if name == "method":
        RecalibrateBatchNorm((), value)
    if name in _SEEN:
        Settings.merged(Settings(), {name: value})


def _check_width(name: str, value: Any) -> None:
    ReduceWidth(**{"ratio": 0.5, name: value})


def _check_export(name: str, value: Any) -> None:
    if not 11 <= value <= 26:
        raise OptionError(f"opset {value}", remedy="Choose one from 11 to 26.")


def _settings() -> dict[str, Any]:
    """The training settings that a recipe may set: where results go is not its business."""
    return {name: hint for name, hint in typing.get_type_hints(Settings).items() if name not in ("out", "resume")}


def _trains(stage: str, required: tuple[str, ...] = (), *, before_fold: bool = False) -> Kind:
    options = {**{name: _STAGE_OPTIONS[name] for name in STAGES[stage].options}, **SETTINGS}
    return Kind(options, _check_training, _training(stage), required, before_fold=before_fold)


SETTINGS = _settings()
_SEEN = {name: SETTINGS[name] for name in ("crop", "flip")}
"""How training images are shown."""
KINDS: dict[str, Kind] = {
    "train": _trains("plain"),
    "sparse": _trains("sparse", before_fold=True),
    "finetune": _trains("finetune"),
    "distill": _trains("distill", ("teacher",)),
    "qat": _trains("qat"),
    "prune": Kind({**_PLAN, "constants": str, "calibrate": int, "allow_unchecked": bool}, _check_prune, _prune),
    "reduce_width": Kind(
        {"ratio": float, "init": str, "criterion": str, "seed": int, "ignore": tuple[str, ...]}, _check_width, _reduce_width, ("ratio",)
    ),
    "recover": Kind({**SETTINGS, **_PLAN, **_RECOVER}, _check_recover, _recover),
    "recalibrate": Kind({"images": int, "method": str, "augment": bool, **_SEEN}, _check_recalibrate, _recalibrate, before_fold=True),
    "fold": Kind({}, lambda name, value: None, _fold),
    "export": Kind({"opset": int}, _check_export, _export),
    "verify": Kind({}, lambda name, value: None, _verify, after="export"),
    "quantize": QUANTIZE,
}
