"""irtool: compress CNNs by rewriting their graphs, with every rewrite proven and checked.

>>> import torch, irtool
>>> graph = irtool.trace(irtool.models.VGG(11, width=0.125), torch.zeros(1, 3, 32, 32))
>>> plan = irtool.plan(graph, "l1", ratio=0.5)
>>> smaller = irtool.fold_batchnorm(irtool.prune(graph, plan))
>>> smaller.module(torch.zeros(1, 3, 32, 32)).shape
torch.Size([1, 10])
"""

from importlib.metadata import PackageNotFoundError, version

from irtool import errors, models
from irtool.analysis.groups import ChannelGroups, channel_groups
from irtool.archive import load, read_info, save
from irtool.ir import FxGraph, Graph, Node, Value, trace
from irtool.passes import FoldBatchNorm, InsertSelects, Prune, fold_batchnorm, prune
from irtool.passmanager import Pass, PassResult, Pipeline
from irtool.planning import Plan, criterion, plan
from irtool.planning.apply import apply

try:
    __version__ = version("irtool")
except PackageNotFoundError:  # a checkout that nobody installed
    __version__ = "0+unknown"

__all__ = [
    "ChannelGroups", "FoldBatchNorm", "FxGraph", "Graph", "InsertSelects", "Node", "Pass", "PassResult", "Pipeline", "Plan", "Prune", "Value",
    "apply", "channel_groups", "criterion", "errors", "fold_batchnorm", "load", "models", "plan", "prune", "read_info", "save", "trace",
]  # fmt: skip
