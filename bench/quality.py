"""irtool against Torch-Pruning and torch-kirigami at equal multiply-accumulates, without labels and without training.

    python bench/quality.py [--nets sparse,normal] [--shares 75,50,35,25] [--seeds 3] [--test 10000] [--tools 'NAME;NAME'] [--shared ../shared]
    python bench/quality.py --table            print the table, and draw the plot, from the file of results alone

Peers are no dependencies. They are used where they can be imported: make an environment that sees this one's packages too, and
`pip install --no-deps torch-pruning==1.6.1 torch-kirigami==0.2.1` there. All tools get the same calibration images (512 of the training
split, another draw each seed), the same counter (`irtool.cost` on the traced result), budgets by bisection where a tool knows
ratios alone (the nearest below the budget), and the same recalibration of batch norms on the same images. Rows that are measured are
in the file at once, and are not measured again. The score is accuracy on the JPEG test images and agreement with the unpruned
net there; no choice was made on them. One thread.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from quality_table import OURS, plot, table
from torch import Tensor, nn

import irtool
from irtool.models import PreResNet
from irtool.train import load_data

ROOT = Path(__file__).resolve().parents[1]
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
IMAGES = 512
EXAMPLE = (1, 3, 32, 32)
BISECTIONS = 9
SCREENED = 500
"""Test images that tell whether a net as returned, or recalibrated, is ten points behind the other way; then it is scored no further."""


@dataclass(frozen=True)
class Calibration:
    """What every tool may look at: images, and a seed. There are no labels."""

    images: Tensor
    seed: int


Tool = Callable[[nn.Module, float, Calibration], nn.Module]


def macs(module: nn.Module) -> int:
    """By the one counter."""
    return irtool.cost(irtool.trace(module.eval(), torch.zeros(EXAMPLE))).macs


def ours(stages: int, distil: int) -> Tool:
    """One call of plan and one of reconstruct."""

    def run(model: nn.Module, share: float, given: Calibration) -> nn.Module:
        graph = irtool.trace(model, torch.zeros(EXAMPLE))
        plan = irtool.plan(graph, residual="select", budget={"macs": share}, data=given.images, stages=stages, seed=given.seed, round_to=1)
        module: nn.Module = irtool.reconstruct(graph, plan, given.images, distil=distil, seed=given.seed).module
        return module

    return run


def torch_pruning(importance: str, *, inside: bool, isomorphic: bool = False) -> Tool:
    """Torch-Pruning's basic pruner with one of its importances, by bisection over its ratio.

    Gradients are of losses with labels drawn from the net's own predictions, as there are none; for the Hessian image by image.
    """

    def run(model: nn.Module, share: float, given: Calibration) -> nn.Module:
        import torch_pruning as tp

        made = {
            "hessian": tp.importance.GroupHessianImportance, "taylor": tp.importance.GroupTaylorImportance,
            "obd": lambda: tp.importance.OBDCImportance(num_classes=10), "bn_scale": tp.importance.BNScaleImportance,
            "l1": lambda: tp.importance.GroupMagnitudeImportance(p=1), "l2": lambda: tp.importance.GroupMagnitudeImportance(p=2),
            "fpgm": tp.importance.FPGMImportance, "lamp": lambda: tp.importance.LAMPImportance(p=2), "random": tp.importance.RandomImportance,
        }  # fmt: skip
        original, model = macs(model), _without_selections(model)
        kept = [model.fc if hasattr(model, "fc") else [part for part in model.modules() if isinstance(part, nn.Linear)][-1]]
        names = _streams(model) if inside else []
        torch.manual_seed(given.seed)
        squared = importance in ("hessian", "obd")
        slopes = _gradients(model, given, squared=squared) if squared or importance == "taylor" else {}

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
            ignored = [table[name] for name, part in model.named_modules() if any(part is one for one in kept) or name in names]
            tp.pruner.BasePruner(new, torch.zeros(EXAMPLE), rated, global_pruning=True, pruning_ratio=ratio, max_pruning_ratio=0.95,
                                 isomorphic=isomorphic, ignored_layers=ignored).step()  # fmt: skip
            return new

        return _bisected(at, share * original)

    return run


def _without_selections(model: nn.Module) -> nn.Module:
    """Peers have no channel selection; of all channels it does nothing."""
    for part in list(model.modules()):
        if getattr(part, "select", None) is not None:
            part.select = nn.Identity()
    return model


def _streams(model: nn.Module) -> list[str]:
    """Convolutions that write to the residual stream."""
    return [name for name, part in model.named_modules() if isinstance(part, nn.Conv2d) and (
        name in ("conv1", "stem") or name.endswith(("conv3", "shortcut", "shortcut.0", "downsample.0", "downsample")))]  # fmt: skip


def _gradients(model: nn.Module, given: Calibration, *, squared: bool) -> dict[str, Tensor]:
    """Sums of parameters' gradients, or of their squares image by image (then of half of the images)."""
    model.eval()
    found = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    images = given.images[: len(given.images) // 2] if squared else given.images
    for part in images.split(1 if squared else 64):
        model.zero_grad()
        outputs = model(part)
        drawn = torch.multinomial(outputs.detach().softmax(1), 1)[:, 0]
        nn.functional.cross_entropy(outputs, drawn, reduction="sum").backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                found[name] += parameter.grad.square() if squared else parameter.grad
    model.zero_grad()
    return found


def kirigami(metric: str) -> Tool:
    """torch-kirigami's greedy pruner with one of its scores, by bisection over its ratio of channels (it knows no multiply-accumulates)."""

    def run(model: nn.Module, share: float, given: Calibration) -> nn.Module:
        from torch_kirigami import DependencyGraph
        from torch_kirigami.pruning import ChannelRatio, Greedy, GroupMagnitude, Pruner, WeightTaylor

        original, model = macs(model), _without_selections(model)
        torch.manual_seed(given.seed)
        slopes = _gradients(model, given, squared=False) if metric == "taylor" else {}

        def at(ratio: float) -> nn.Module:
            new = copy.deepcopy(model).eval()
            for name, parameter in new.named_parameters():
                parameter.grad = slopes[name].clone() if name in slopes else None
            pruner = Pruner(new, graph=DependencyGraph.build(new, args=(torch.zeros(EXAMPLE),)))
            strategy = Greedy(WeightTaylor() if metric == "taylor" else GroupMagnitude(p=2))
            done: nn.Module = pruner.prune(pruner.discover_candidates(), budget=ChannelRatio(ratio, "global"), strategy=strategy)[0]
            return done

        return _bisected(at, share * original)

    return run


def _bisected(at: Callable[[float], nn.Module], target: float) -> nn.Module:
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
TOOLS: dict[str, Tool] = {
    "unpruned": lambda model, share, given: model,
    OURS: ours(2, 0),
    "irtool, fisher, 1 stage": ours(1, 0),
    "irtool, fisher, 2 stages, distilled": ours(2, 4),
    **{f"TP {name}, inside": torch_pruning(name, inside=True) for name in IMPORTANCES},
    **{f"TP {name}, all": torch_pruning(name, inside=False) for name in IMPORTANCES},
    **{f"TP {name}, all, isomorphic": torch_pruning(name, inside=False, isomorphic=True) for name in ("hessian", "taylor", "l2")},
    "kirigami l2": kirigami("l2"),
    "kirigami taylor": kirigami("taylor"),
}


@torch.no_grad()
def classes(module: nn.Module, images: Tensor) -> Tensor:
    """The class that a net gives each image."""
    return torch.cat([module.eval()(part).argmax(1) for part in images.split(250)])


@torch.no_grad()
def recalibrated(module: nn.Module, images: Tensor) -> nn.Module:
    """A copy with batch norm statistics measured anew; the same function for every tool."""
    new = copy.deepcopy(module)
    norms = [part for part in new.modules() if isinstance(part, nn.BatchNorm2d)]
    for part in norms:
        part.reset_running_stats()
        part.momentum = None
    new.eval()
    for part in norms:
        part.train()
    for batch in images.split(128):
        new(batch)
    return new.eval()


def measured(name: str, net: str, share: float, seed: int, world: World) -> dict[str, Any]:
    """One row."""
    order = np.random.default_rng(seed).permutation(18_000)  # the last 2,000 training images are for choices
    given = Calibration(world.training(order[:IMAGES]), seed)
    model = world.model(net)
    row: dict[str, Any] = {"tool": name, "net": net, "share": share, "seed": seed}
    start = time.process_time()
    try:
        made = TOOLS[name](copy.deepcopy(model), share, given)
    except Exception as error:  # a peer that fails is a result
        return {**row, "failed": f"{type(error).__name__}: {str(error).splitlines()[0][:160] if str(error) else ''}"}
    row["seconds"] = time.process_time() - start
    row["macs"] = macs(made) / macs(model)
    ways = {"plain": made, "recalibrated": recalibrated(made, given.images)}
    first = {
        way: float((classes(module, world.images[:SCREENED]) == world.labels[:SCREENED]).double().mean()) for way, module in ways.items()
    }
    for way, module in ways.items():
        if (way == "plain" and name == OURS) or first[way] > max(first.values()) - 0.1:
            got = classes(module, world.images)
            row[way] = [100 * float((got == other).double().mean()) for other in (world.labels, world.answers(net))]
        else:
            row[way] = None
    return row


class World:
    """The nets, and the images that score them."""

    def __init__(self, shared: Path, test: int) -> None:
        self.shared, self.data = shared, load_data(shared / "data" / "cifar10-jpeg.zip", mean=MEAN, std=STD)
        chosen = np.random.default_rng(1).permutation(len(self.data.test.labels))[:test]  # they lie class by class
        self.images = self._of(self.data.test, chosen)
        self.labels = torch.as_tensor(np.asarray(self.data.test.labels)[chosen])
        self._answers: dict[str, Tensor] = {}

    def training(self, chosen: Any) -> Tensor:
        """Training images, by their numbers in the order that the other benches hold 2,000 back by."""
        order = np.random.default_rng(0).permutation(len(self.data.train.labels))
        return self._of(self.data.train, order[chosen])

    def model(self, name: str) -> nn.Module:
        """A published net."""
        net = PreResNet(38)
        net.load_state_dict(torch.load(self.shared / "data" / "preresnet38" / f"{name}.pth", weights_only=True)["state_dict"])
        return net.eval()

    def answers(self, name: str) -> Tensor:
        """What the unpruned net says."""
        if name not in self._answers:
            self._answers[name] = classes(self.model(name), self.images)
        return self._answers[name]

    def _of(self, split: Any, chosen: Any) -> Tensor:
        found: Tensor = self.data.preprocessing.normalise(next(iter(split.batches([np.asarray(chosen)]))))
        return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", default="sparse,normal")
    parser.add_argument("--shares", default="75,50,35,25")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--test", type=int, default=10_000)
    parser.add_argument("--tools", default="", help="names of tools, with ; between, in the order in which they are measured")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--json", type=Path, default=ROOT / "bench" / "results" / "quality.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = json.loads(options.json.read_text()) if options.json.exists() else []
    if not options.table:
        world = World(options.shared, options.test)
        words = [word.strip() for word in options.tools.split(";")]
        wanted = [tool for word in words for tool in TOOLS if tool == word or not word]
        cells = itertools.product(
            range(options.first_seed, options.first_seed + options.seeds),
            wanted,
            options.nets.split(","),
            (float(part) / 100 for part in options.shares.split(",")),
        )
        for seed, tool, net, share in cells:
            if any((row["tool"], row["net"], row["share"], row["seed"]) == (tool, net, share, seed) for row in rows):
                continue
            rows.append(measured(tool, net, share, seed, world))
            print(json.dumps(rows[-1]), flush=True)
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))
    if rows:
        plot(rows, ROOT / "docs" / "quality.png")


if __name__ == "__main__":
    main()
