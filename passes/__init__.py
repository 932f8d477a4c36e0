"""Passes, one a file. Importing this package registers them all."""

from irtool.passes.fold_batchnorm import FoldBatchNorm, fold_batchnorm
from irtool.passes.insert_selects import InsertSelects
from irtool.passes.prune import Prune, prune

__all__ = ["FoldBatchNorm", "InsertSelects", "Prune", "fold_batchnorm", "prune"]
