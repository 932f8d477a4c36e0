"""Int8: calibration, placement and scales; what no engine decides.

`irtool.engines.onnxruntime.calibrate` runs a float ONNX model on images and keeps `Statistics` of its tensors; `place` says which
tensors are integers; `make_recipe` chooses every scale; the engines write them down (`irtool.engines.onnxruntime.qdq`,
`irtool.engines.mnn.int8`).
"""

from irtool.quant.affine import Affine, Grid, affine, grid
from irtool.quant.observers import observe
from irtool.quant.placement import Layer, Placement, layers_of, place
from irtool.quant.scales import Recipe, Scheme, make_recipe
from irtool.quant.statistics import Statistics
from irtool.quant.weights import channel_scales

__all__ = [
    "Affine", "Grid", "Layer", "Placement", "Recipe", "Scheme", "Statistics", "affine", "channel_scales",
    "grid", "layers_of", "make_recipe", "observe", "place",
]  # fmt: skip
