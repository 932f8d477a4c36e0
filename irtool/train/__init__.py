"""Thin training loops over any `nn.Module` or graph, and the data for them.

`load_data` reads a dataset, `evaluate` scores a model on it, `fit` trains one; `sparse`, `finetune` and `distill` are `fit`
with a penalty, a small learning rate, a teacher. `recover` prunes and gets back what it can in a given time.
"""

from irtool.progress import Progress, Status, silent
from irtool.train.batch import Batch
from irtool.train.data.dataset import Data, load_data
from irtool.train.data.loaders import Loaders
from irtool.train.data.preprocessing import Preprocessing
from irtool.train.data.split import Split
from irtool.train.distill import distill, distillation_loss, finetune
from irtool.train.evaluate import Evaluation, evaluate, predict
from irtool.train.fit import Trainable, fit
from irtool.train.history import History, Record
from irtool.train.recover import Attempt, Recovery, recover
from irtool.train.settings import Settings
from irtool.train.sparse import find_strength, small_scales, sparse

__all__ = [
    "Attempt",
    "Batch",
    "Data",
    "Evaluation",
    "History",
    "Loaders",
    "Preprocessing",
    "Progress",
    "Record",
    "Recovery",
    "Settings",
    "Split",
    "Status",
    "Trainable",
    "distill",
    "distillation_loss",
    "evaluate",
    "find_strength",
    "finetune",
    "fit",
    "load_data",
    "predict",
    "recover",
    "silent",
    "small_scales",
    "sparse",
]
