"""What `import irtool` offers. `irtool/__init__.py` loads each name from here when it is first used."""

from . import errors, models, passes, quant, train
from .analysis.compare import Comparison
from .analysis.cost import Cost, cost
from .analysis.diff.diff import Diff, diff
from .archive import load, read_info, save
from .channels.groups import ChannelGroups, channel_groups
from .engines import export_mnn, export_onnx
from .engines.compare import compare
from .hosts.onnx.files.load import load_onnx, save_onnx
from .hosts.onnx.graph import OnnxGraph
from .hosts.torch.graph import FxGraph
from .hosts.torch.tracing.submodule import put_back
from .hosts.torch.tracing.trace import trace
from .ir import Graph, Node, Value
from .passes import (
    DeadCode,
    FoldBatchNorm,
    FoldConstants,
    InsertSelects,
    LowerAffine,
    Prune,
    RecalibrateBatchNorm,
    Reconstruct,
    ReduceWidth,
    RemoveIdentity,
    Rewrite,
    WidenSelects,
    fold_batchnorm,
    prune,
    reconstruct,
    rewrite,
    simplify,
)
from .passmanager import Pass, PassResult, Pipeline
from .pruning import Plan, criterion, plan
from .pruning.slicing.check import MaskedCheck, check_prune
from .workflows.apply import apply
from .workflows.compress.run import Compression, compress
from .workflows.equality.verify import verify
from .workflows.quantize.run import Quantisation, quantize
from .workflows.quantize.weights_alone import WeightsAlone, quantize_weights
from .workflows.recipe.run import RecipeRun, run_recipe

__version__: str

__all__ = [
    "ChannelGroups", "Comparison", "Compression", "Cost", "DeadCode", "Diff", "FoldBatchNorm", "FoldConstants", "FxGraph", "Graph",
    "InsertSelects", "LowerAffine", "MaskedCheck", "Node", "OnnxGraph", "Pass", "PassResult", "Pipeline", "Plan", "Prune",
    "Quantisation", "RecalibrateBatchNorm", "RecipeRun", "Reconstruct", "ReduceWidth", "RemoveIdentity", "Rewrite", "Value", "WeightsAlone", "WidenSelects",
    "apply", "channel_groups", "check_prune", "compare", "compress", "cost", "criterion", "diff", "errors", "export_mnn",
    "export_onnx", "fold_batchnorm", "load", "load_onnx", "models", "passes", "plan", "prune", "put_back", "quant", "quantize", "quantize_weights",
    "read_info", "reconstruct", "rewrite", "run_recipe", "save", "save_onnx", "simplify", "trace", "train", "verify",
]  # fmt: skip
