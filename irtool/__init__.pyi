"""What `import irtool` offers. `irtool/__init__.py` loads each name from here when it is first used."""

from . import errors, models, passes, quant, train
from .analysis.compare import Comparison, compare
from .analysis.cost import Cost, cost
from .analysis.diff import Diff, diff
from .analysis.groups import ChannelGroups, channel_groups
from .archive import load, read_info, save
from .backends import export_mnn, export_onnx
from .ir import FxGraph, Graph, Node, OnnxGraph, Value, load_onnx, put_back, save_onnx, trace
from .passes import (
    DeadCode,
    FoldBatchNorm,
    FoldConstants,
    InsertSelects,
    LowerAffine,
    Prune,
    RecalibrateBatchNorm,
    ReduceWidth,
    RemoveIdentity,
    WidenSelects,
    fold_batchnorm,
    prune,
    simplify,
)
from .passmanager import Pass, PassResult, Pipeline
from .planning import Plan, criterion, plan
from .planning.apply import apply
from .planning.check import MaskedCheck, check_prune

__version__: str

__all__ = [
    "ChannelGroups", "Comparison", "Cost", "DeadCode", "Diff", "FoldBatchNorm", "FoldConstants", "FxGraph", "Graph",
    "InsertSelects", "LowerAffine", "MaskedCheck", "Node", "OnnxGraph", "Pass", "PassResult", "Pipeline", "Plan", "Prune",
    "RecalibrateBatchNorm", "ReduceWidth", "RemoveIdentity", "Value", "WidenSelects", "apply", "channel_groups", "check_prune",
    "compare", "cost", "criterion", "diff", "errors", "export_mnn", "export_onnx", "fold_batchnorm", "load", "load_onnx",
    "models", "passes", "plan", "prune", "put_back", "quant", "read_info", "save", "save_onnx", "simplify", "trace", "train",
]  # fmt: skip
