"""irtool against Torch-Pruning and torch-kirigami at equal multiply-accumulates: without labels and training, then after one epoch.

    python bench/quality.py [--nets sparse,normal,vgg16,mobilenetv2] [--shares 75,50,35,25] [--seeds 0,1,2] [--data FOLDER] [--epoch]
    python bench/quality.py --table            write the tables into docs/quality.md, and draw the plot, from the file of results alone

Peers are no dependencies. They are used where they can be imported: make an environment that sees this one's packages too, and
`pip install --no-deps torch-pruning==1.6.1 torch-kirigami==0.2.1` there. `--data` is the folder of Fashion-MNIST's idx files; two nets are trained
on it here, once, into `--work`. All tools get the same calibration images (512 training images without labels, another draw each seed), the same
counter (`irtool.cost` on the traced result), budgets by bisection where a tool knows ratios alone (the nearest below the budget), and
the same recalibration of batch norms on the same images.

Three sets of images are disjoint: those that tools see; 600 held-back training images, on which the best peer of each net, budget and seed, and its
better way (as returned, or recalibrated), are chosen; and the 10,000 test images, which score irtool and that peer alone. With the first
seed all peers are tried, later the best few of them. What is measured is in the file at once, and is not measured again. One thread.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from quality_kirigami import KIRIGAMI
from quality_nets import EPOCH_IMAGES, FRESH, PUBLISHED, Nets, World, train_epoch
from quality_table import plot, table, write
from quality_tools import OURS, TORCH_PRUNING, Calibration, Tool, macs, streams
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
CHOOSING = 600
SCREENED, FAR, HOPELESS = 250, 6.0, 8.0
"""Images that tell whether a net is `FAR` points behind the best so far: then it is looked at no further. A peer that is `HOPELESS` points
behind the best is not tried at smaller budgets of that net."""
FINALISTS = 1
"""Peers that are tried with further seeds: the best of the first."""
RATES = (0.001, 0.01)
"""Of the epoch; the better on the choosing images counts, for each tool."""
TOGETHER = 50
"""Images that run together where nets answer, with their channels last: a fifth of the time that 250 take as they are."""
PEERS: dict[str, Tool] = TORCH_PRUNING | KIRIGAMI
Row = dict[str, Any]


@torch.no_grad()
def classes(module: nn.Module, images: Tensor) -> Tensor:
    """The class that a net gives each image."""
    parts = images.contiguous(memory_format=torch.channels_last).split(TOGETHER)
    return torch.cat([module.eval()(part).argmax(1) for part in parts])


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
    for batch in images.contiguous(memory_format=torch.channels_last).split(128):
        new(batch)
    return new.eval()


@dataclass
class Bench:
    """All rows so far, and what makes more."""

    nets: Nets
    path: Path
    peers: dict[str, Tool]
    rows: list[Row] = field(default_factory=list)
    _answers: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    _made: dict[str, nn.Module] = field(default_factory=dict)
    """Of this cell, by tool."""

    def cell(self, net: str, share: float, seed: int, *, epoch: bool) -> None:
        """Try the tools at one budget with one seed; then score irtool and the best peer, or train them."""
        self._made = {}
        model, world = self.nets.model(net), self.nets.world(net)
        given = Calibration(world.calibration(seed), seed)
        for name, tool in self._tools(net, share, seed).items():
            if self.row(name, net, share, seed) is None:
                self._try(name, tool, (net, share, seed), model, given, world)
        for name in self._best(net, share, seed):
            row = self.row(name, net, share, seed)
            assert row is not None
            if "scored" not in row:
                row["scored"] = self._shares(self._module(row, model, given), net, world.test, "test")
                self._write(row)
            if epoch and "epoch" not in row:
                self._epoch(row, self._module(row, model, given), world)

    def row(self, name: str, net: str, share: float, seed: int) -> Row | None:
        """Facts about a tool."""
        key = (name, net, share, seed)
        return next((row for row in self.rows if (row["tool"], row["net"], row["share"], row["seed"]) == key), None)

    def unpruned(self, net: str) -> None:
        """Score a net as it is, and recalibrated."""
        if self.row("unpruned", net, 1.0, 0) is None:
            model, world = self.nets.model(net), self.nets.world(net)
            again = recalibrated(model, world.calibration(0))
            row: Row = {"tool": "unpruned", "net": net, "share": 1.0, "seed": 0, "seconds": 0.0, "macs": 1.0, "way": "plain"}
            row["chosen"] = {way: self._shares(one, net, world.validation, "validation")
                             for way, one in (("plain", model), ("recalibrated", again))}  # fmt: skip
            row["scored"] = self._shares(model, net, world.test, "test")
            row["recalibrated"] = self._shares(again, net, world.test, "test")
            self._write(row)

    def _tools(self, net: str, share: float, seed: int) -> dict[str, Tool]:
        first = [row for row in self.rows if (row["net"], row["share"], row["seed"]) == (net, share, 0) and "chosen" in row]
        ranked = sorted((row for row in first if row["tool"] in PEERS), key=lambda row: -_right(row))
        whole = bool(streams(self.nets.model(net)))
        peers = self._hopeful(net, share) if seed == 0 else {row["tool"]: PEERS[row["tool"]] for row in ranked[:FINALISTS]}
        return OURS | {name: tool for name, tool in peers.items() if whole or "inside" not in name}

    def _hopeful(self, net: str, share: float) -> dict[str, Tool]:
        """Peers that were not far behind at a larger budget."""
        larger = {row["share"] for row in self.rows if row["net"] == net and row["seed"] == 0 and share < row["share"] < 1}
        lost = {
            row["tool"]
            for one in larger
            for found in [[row for row in self.rows if (row["net"], row["share"], row["seed"]) == (net, one, 0) and row["tool"] in PEERS]]
            for row in found
            if "chosen" in row and _right(row) < max(_right(other) for other in found if "chosen" in other) - HOPELESS
        }
        return {name: tool for name, tool in self.peers.items() if name not in lost}

    def _try(self, name: str, tool: Tool, where: tuple[str, float, int], model: nn.Module, given: Calibration, world: World) -> None:
        """Make a net, and see what it does on the images that choose."""
        net, share, seed = where
        row: Row = {"tool": name, "net": net, "share": share, "seed": seed}
        had, start = set(given.slopes), time.process_time()
        try:
            made = tool(copy.deepcopy(model), share, given)
        except Exception as error:  # a peer that fails is a result
            self._write({**row, "failed": f"{type(error).__name__}: {str(error).splitlines()[0][:160] if str(error) else ''}"})
            return
        row["seconds"] = time.process_time() - start + sum(given.slopes[kind][1] for kind in had if _reads(name) is kind)
        row["macs"] = macs(made) / macs(model)
        ways = {"plain": made} if name in OURS else {"plain": made, "recalibrated": recalibrated(made, given.images)}
        best = max((_right(other) for other in self._peers(*where)), default=0.0)
        first = {way: self._shares(one, net, world.validation, "validation", SCREENED) for way, one in ways.items()}
        near = [way for way in ways if first[way][0] > max(best, *(one[0] for one in first.values())) - FAR or name in OURS]
        row["chosen"] = first | {way: self._shares(ways[way], net, world.validation, "validation", CHOOSING) for way in near}
        row["far"] = not near
        row["way"] = max(near or ways, key=lambda way: row["chosen"][way][0])
        self._write(row)
        if name in OURS or _right(row) >= best:
            self._made[name] = ways[row["way"]]

    def _peers(self, net: str, share: float, seed: int) -> list[Row]:
        return [row for row in self.rows if (row["net"], row["share"], row["seed"]) == (net, share, seed)
                and row["tool"] in PEERS and "chosen" in row and not row["far"]]  # fmt: skip

    def _best(self, net: str, share: float, seed: int) -> list[str]:
        """irtool, and the best peer by what is right on the choosing images."""
        mine = [name for name in OURS if "chosen" in (self.row(name, net, share, seed) or {})]
        peers = sorted(self._peers(net, share, seed), key=lambda row: -_right(row))
        return [*mine, *(row["tool"] for row in peers[:1])]

    def _module(self, row: Row, model: nn.Module, given: Calibration) -> nn.Module:
        """A row's net, made again if it is not at hand."""
        name = row["tool"]
        if name not in self._made:
            made = (OURS | PEERS)[name](copy.deepcopy(model), row["share"], given)
            self._made[name] = recalibrated(made, given.images) if row["way"] == "recalibrated" else made
        return self._made[name]

    def _epoch(self, row: Row, module: nn.Module, world: World) -> None:
        """One epoch with labels at each rate; the one that chooses better is scored."""
        images, labels = world.labelled(EPOCH_IMAGES, row["seed"])
        found = {}
        for rate in RATES:
            net = copy.deepcopy(module)
            for parameter in net.parameters():
                parameter.requires_grad_(True)
            train_epoch(net, images, labels, rate, seed=row["seed"])
            found[rate] = self._shares(net, row["net"], world.validation, "validation", CHOOSING), net
        rate = max(found, key=lambda one: found[one][0][0])
        row["epoch"] = {"rate": rate, "chosen": {str(one): found[one][0] for one in found},
                        "scored": self._shares(found[rate][1], row["net"], world.test, "test")}  # fmt: skip
        self._write(row)

    def _shares(self, module: nn.Module, net: str, images: tuple[Tensor, Tensor], kind: str, count: int | None = None) -> list[float]:
        """How many images a net gets right, and how many as the unpruned one does, in %."""
        if (net, kind) not in self._answers:
            path = self.nets.work / f"{net}-{kind}.pt"  # a minute's work, for whoever resumes
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                torch.save(classes(self.nets.model(net), images[0]), path)
            self._answers[net, kind] = torch.load(path, weights_only=True)
        got = classes(module, images[0][:count])
        return [100 * float((got == other[:count]).double().mean()) for other in (images[1], self._answers[net, kind])]

    def _write(self, row: Row) -> None:
        if not any(row is other for other in self.rows):
            self.rows.append(row)
        print(json.dumps(row), flush=True)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".part")
        temporary.write_text("[\n" + ",\n".join(json.dumps(one) for one in self.rows) + "\n]\n")
        temporary.replace(self.path)


def _right(row: Row) -> float:
    """By the better way."""
    found: float = row["chosen"][row["way"]][0]
    return found


def _reads(name: str) -> bool | None:
    """Gradients of the unpruned net that a peer reads: squared ones, plain ones, none."""
    return True if " hessian" in name or " obd" in name else False if " taylor" in name else None


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", default=",".join((*PUBLISHED, *FRESH)))
    parser.add_argument("--shares", default="75,50,35,25")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument(
        "--peers", default="", help="parts of peers' names, with ; between, that are tried with the first seed; all if left out"
    )
    parser.add_argument("--epoch", action="store_true", help="train irtool's and the best peer's net for one epoch too")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--data", type=Path, help="the folder of Fashion-MNIST's idx files")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "quality")
    parser.add_argument("--json", type=Path, default=ROOT / "bench" / "results" / "quality.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    words = [word.strip() for word in options.peers.split(";") if word.strip()]
    peers = {name: tool for name, tool in PEERS.items() if not words or any(word in name for word in words)}
    bench = Bench(Nets(options.shared, options.data, options.work), options.json, peers)
    bench.rows = json.loads(options.json.read_text()) if options.json.exists() else []
    if not options.table:
        shares = [float(part) / 100 for part in options.shares.split(",")]
        for seed, net, share in itertools.product(map(int, options.seeds.split(",")), options.nets.split(","), shares):
            bench.unpruned(net)
            bench.cell(net, share, seed, epoch=options.epoch)
    print(table(bench.rows))
    if options.table:
        write(bench.rows, ROOT / "docs" / "quality.md")
        plot(bench.rows, ROOT / "docs" / "quality.png")


if __name__ == "__main__":
    main()
