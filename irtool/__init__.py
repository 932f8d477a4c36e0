"""irtool: compress CNNs by rewriting their graphs, with every rewrite proven and checked.

>>> import torch, irtool
>>> graph = irtool.trace(irtool.models.VGG(11, width=0.125), torch.zeros(1, 3, 32, 32))
>>> plan = irtool.plan(graph, "l1", ratio=0.5)
>>> smaller = irtool.fold_batchnorm(irtool.prune(graph, plan))
>>> smaller.module(torch.zeros(1, 3, 32, 32)).shape
torch.Size([1, 10])
"""

import logging
from typing import Any

import lazy_loader

# torch alone takes seconds to import. Loaded on first use, `irtool --help` and Ctrl-C need not wait for it.
_lazy, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    """Load what is asked for. The version too: to look into installed packages takes a tenth of the time of a help text."""
    if name != "__version__":
        return _lazy(name)
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("irtool")
    except PackageNotFoundError:  # a checkout that nobody installed
        return "0+unknown"


# What irtool does is logged under its name; nothing is shown unless asked for.
logging.getLogger("irtool").addHandler(logging.NullHandler())
