"""irtool: compress CNNs by rewriting their graphs, with every rewrite proven and checked.

>>> import torch, irtool
>>> graph = irtool.trace(irtool.models.VGG(11, width=0.125), torch.zeros(1, 3, 32, 32))
>>> plan = irtool.plan(graph, "l1", ratio=0.5)
>>> smaller = irtool.fold_batchnorm(irtool.prune(graph, plan))
>>> smaller.module(torch.zeros(1, 3, 32, 32)).shape
torch.Size([1, 10])
"""

import logging
from importlib.metadata import PackageNotFoundError, version

import lazy_loader

# torch alone takes seconds to import. Loaded on first use, `irtool --help` and Ctrl-C need not wait for it.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

try:
    __version__ = version("irtool")
except PackageNotFoundError:  # a checkout that nobody installed
    __version__ = "0+unknown"

logging.getLogger("irtool").addHandler(
    logging.NullHandler()
)  # what irtool does is logged under its name; nothing is shown unless asked for
