"""Saving graphs and loading them, with no pickle anywhere.

An archive is one safetensors file. Its tensors are the weights under their qualified names, so that every safetensors
reader can read them; its metadata holds one JSON text with the fx program as data, the modules it calls, the history of
steps, the training flags, and the form of the example inputs. It loads in two ways: by itself, into a trainable
`torch.fx.GraphModule`, or into an untouched instance of the user's class, on which the history is replayed.

Why this and not another format (docs/adr/0002-archive-format.md): a pickle runs code when it is loaded; `torch.export`'s
.pt2 freezes train-or-eval and gives no module tree to go on pruning; generated source is code to run, too. Data that is
looked up in a table, by the kinds of its values too, can be read from anyone (docs/adr/0014-a-closed-world-for-archives.md).
"""

from irtool.archive.archive import ArchiveInfo, load, read_info, save

__all__ = ["ArchiveInfo", "load", "read_info", "save"]
