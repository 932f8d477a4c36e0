"""Passes, one a file. Importing this package registers them all."""

from irtool.passes.dead_code import DeadCode
from irtool.passes.equalise import Equalise
from irtool.passes.fold_batchnorm import FoldBatchNorm, fold_batchnorm
from irtool.passes.fold_constants import FoldConstants
from irtool.passes.fold_norm_forward import FoldNormForward
from irtool.passes.fold_scale import FoldScale
from irtool.passes.insert_selects import InsertSelects
from irtool.passes.lower_affine import LowerAffine
from irtool.passes.prune import Prune, Rewrite, prune, rewrite
from irtool.passes.recalibrate_batchnorm import RecalibrateBatchNorm
from irtool.passes.reconstruct import Reconstruct, reconstruct
from irtool.passes.reduce_width import ReduceWidth
from irtool.passes.remove_identity import RemoveIdentity
from irtool.passes.simplify import Simplify, simplify
from irtool.passes.widen_selects import WidenSelects

__all__ = [
    "DeadCode",
    "Equalise",
    "FoldBatchNorm",
    "FoldConstants",
    "FoldNormForward",
    "FoldScale",
    "InsertSelects",
    "LowerAffine",
    "Prune",
    "RecalibrateBatchNorm",
    "Reconstruct",
    "ReduceWidth",
    "RemoveIdentity",
    "Rewrite",
    "Simplify",
    "WidenSelects",
    "fold_batchnorm",
    "prune",
    "reconstruct",
    "rewrite",
    "simplify",
]
