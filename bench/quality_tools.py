"""Tools that `bench/quality.py` compares: irtool and Torch-Pruning's importances, each from a net and a share of its MACs to a net."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

import irtool

EXAMPLE = (1, 3, 32, 32)
BISECTIONS = 9
STEPS = 3
"""Of an iterative schedule: equal ratios of the multiply-accumulates, gradients taken anew before each."""


@dataclass
class Calibration:
    """Material that every tool may look at: images, and a seed. There are no labels."""

    images: Tensor
    seed: int
    slopes: dict[bool, tuple[dict[str, Tensor], float]] = field(default_factory=dict)
    """Gradients of the unpruned net, plain and squared, that several tools read, and what they cost in CPU seconds."""


Tool = Callable[[nn.Module, float, Calibration], nn.Module]


def macs(module: nn.Module) -> int:
    """By the one counter."""
    return irtool.cost(irtool.trace(module.eval(), torch.zeros(EXAMPLE))).macs


def ours(model: nn.Module, share: float, given: Calibration) -> nn.Module:
    """One call of plan and one of reconstruct: the defaults, but for two stages and single channels, which peers take too."""
    graph = irtool.trace(model, torch.zeros(EXAMPLE))
    plan = irtool.plan(graph, budget={"macs": share}, data=given.images, stages=2, seed=given.seed, round_to=1)
    module: nn.Module = irtool.reconstruct(graph, plan, given.images, seed=given.seed).module
    return module


def torch_pruning(importance: str, *, inside: bool, isomorphic: bool = False) -> Tool:
    """Torch-Pruning's basic pruner with one of its importances, by bisection over its ratio.

    Gradients are of losses with labels drawn from the net's own predictions, as there are none; for the Hessian image by image.

    Args:
        importance: a key of the table below.
        inside: leave the residual streams whole.
        isomorphic: rank among groups of one form.
    """

    def run(model: nn.Module, share: float, given: Calibration) -> nn.Module:
        import torch_pruning as tp

        made = {
            "hessian": tp.importance.GroupHessianImportance, "taylor": tp.importance.GroupTaylorImportance,
            "obd": lambda: tp.importance.OBDCImportance(num_classes=10), "bn_scale": tp.importance.BNScaleImportance,
            "l1": lambda: tp.importance.GroupMagnitudeImportance(p=1), "l2": lambda: tp.importance.GroupMagnitudeImportance(p=2),
            "fpgm": tp.importance.FPGMImportance, "lamp": lambda: tp.importance.LAMPImportance(p=2), "random": tp.importance.RandomImportance,
        }  # fmt: skip
        original, model = macs(model), without_selections(model)
        kept = [part for part in model.modules() if isinstance(part, nn.Linear)][-1]
        names = streams(model) if inside else []
        torch.manual_seed(given.seed)
        squared = importance in ("hessian", "obd")
        slopes = gradients(model, given, squared=squared) if squared or importance == "taylor" else {}

        def at(ratio: float) -> nn.Module:
            new = copy.deepcopy(model)
            table, rated = dict(new.named_modules()), made[importance]()
            for name, parameter in new.named_parameters():
                if name in slopes and importance == "taylor":
                    parameter.grad = slopes[name].clone()
            if importance == "hessian":
                rated._accu_grad = {parameter: slopes[name].clone() for name, parameter in new.named_parameters()}
                rated._counter = {parameter: len(given.images) // 2 for parameter in new.parameters()}
            if squared:  # the importances ask whether there is a gradient, and read the sums
                for name, parameter in new.named_parameters():
                    parameter.grad = slopes[name].sqrt()
            if importance == "obd":
                rated.steps = len(given.images) // 2
                rated.Fisher = {table[name.removesuffix(".weight")]: slopes[name].flatten(1) for name in slopes if slopes[name].dim() > 1}
            ignored = [table[name] for name, part in model.named_modules() if part is kept or name in names]
            tp.pruner.BasePruner(new, torch.zeros(EXAMPLE), rated, global_pruning=True, pruning_ratio=ratio, max_pruning_ratio=0.95,
                                 isomorphic=isomorphic, ignored_layers=ignored).step()  # fmt: skip
            return new

        return bisected(at, share * original)

    return run


def iterative(tool: Tool) -> Tool:
    """A tool's own result pruned again, to the budget in `STEPS` steps, with gradients of the net as it is then."""

    def run(model: nn.Module, share: float, given: Calibration) -> nn.Module:
        original = macs(model)
        for step in range(1, STEPS + 1):
            at = given if step == 1 else Calibration(given.images, given.seed)
            model = tool(model, share ** (step / STEPS) * original / macs(model), at)
        return model

    return run


def without_selections(model: nn.Module) -> nn.Module:
    """Peers have no channel selection; of all channels it does nothing."""
    for part in list(model.modules()):
        if getattr(part, "select", None) is not None:
            part.select = nn.Identity()
    return model


def streams(model: nn.Module) -> list[str]:
    """Convolutions that write to a residual stream, by the names that they have in PreResNet, ResNet and MobileNetV2."""
    found, blocks = [], [name for name, part in model.named_modules() if type(part).__name__ == "InvertedResidual"]
    for name, part in model.named_modules():
        parent = name.rsplit(".", 1)[0]
        narrow = parent.removesuffix(".conv") in blocks and parent.endswith(".conv")  # the convolution without an activation behind it
        named = name in ("conv1", "stem") or name.endswith(("conv3", "shortcut", "shortcut.0", "downsample.0", "downsample"))
        if isinstance(part, nn.Conv2d) and (narrow or named):
            found.append(name)
    return found


def gradients(model: nn.Module, given: Calibration, *, squared: bool) -> dict[str, Tensor]:
    """Sums of parameters' gradients, or of their squares image by image (then of half of the images). Once for all tools that ask."""
    if squared not in given.slopes:
        start = time.process_time()
        found = _summed(model, given, squared=squared)
        given.slopes[squared] = found, time.process_time() - start
    return given.slopes[squared][0]


def _summed(model: nn.Module, given: Calibration, *, squared: bool) -> dict[str, Tensor]:
    model.eval()
    found = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    images = given.images[: len(given.images) // 2] if squared else given.images
    generator = torch.Generator().manual_seed(given.seed)
    for part in images.split(1 if squared else 64):
        model.zero_grad()
        outputs = model(part)
        drawn = torch.multinomial(outputs.detach().softmax(1), 1, generator=generator)[:, 0]
        nn.functional.cross_entropy(outputs, drawn, reduction="sum").backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                found[name] += parameter.grad.square() if squared else parameter.grad
    model.zero_grad()
    return found


def bisected(at: Callable[[float], nn.Module], target: float) -> nn.Module:
    """The result of the smallest ratio whose multiply-accumulates keep to the target."""
    low, high, best = 0.0, 0.98, None
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        made = at(middle)
        if macs(made) <= target:
            best, high = made, middle
        else:
            low = middle
    if best is None:
        raise ValueError("no ratio reaches the budget")
    return best


IMPORTANCES = ("hessian", "obd", "taylor", "bn_scale", "l1", "l2", "fpgm", "lamp", "random")
TORCH_PRUNING: dict[str, Tool] = {
    **{f"TP {name}, inside": torch_pruning(name, inside=True) for name in IMPORTANCES},
    **{f"TP {name}, all": torch_pruning(name, inside=False) for name in IMPORTANCES},
    **{f"TP {name}, all, isomorphic": torch_pruning(name, inside=False, isomorphic=True) for name in ("hessian", "taylor", "l2")},
    **{f"TP {name}, inside, iterative": iterative(torch_pruning(name, inside=True)) for name in ("hessian", "taylor")},
    "TP hessian, all, iterative": iterative(torch_pruning("hessian", inside=False)),
}
"""`inside` leaves residual streams whole, `all` prunes them too."""
OURS: dict[str, Tool] = {"irtool": ours}
