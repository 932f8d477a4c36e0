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
from irtool.analysis.compare import Comparison, compare
from irtool.analysis.cost import Cost, cost
from irtool.analysis.diff import Diff, diff
from irtool.analysis.groups import ChannelGroups, channel_groups
from irtool.archive import load, read_info, save
from irtool.backends import export_mnn, export_onnx
from irtool.ir import FxGraph, Graph, Node, OnnxGraph, Value, load_onnx, put_back, save_onnx, trace
from irtool.passes import FoldBatchNorm, InsertSelects, Prune, fold_batchnorm, prune
from irtool.passmanager import Pass, PassResult, Pipeline
from irtool.planning import Plan, criterion, plan
from irtool.planning.apply import apply
from irtool.planning.check import MaskedCheck, check_prune

try:
    __version__ = version("irtool")
except PackageNotFoundError:  # a checkout that nobody installed
    __version__ = "0+unknown"

__all__ = [
    "ChannelGroups", "Comparison", "Cost", "Diff", "FoldBatchNorm", "FxGraph", "Graph", "InsertSelects", "MaskedCheck", "Node", "OnnxGraph", "Pass", "PassResult",
    "Pipeline", "Plan", "Prune", "Value", "apply", "channel_groups", "check_prune", "compare", "cost", "criterion", "diff", "errors", "export_mnn",
    "export_onnx", "fold_batchnorm", "load", "load_onnx", "models", "plan", "prune", "put_back", "read_info", "save", "save_onnx", "trace",
]  # fmt: skip
