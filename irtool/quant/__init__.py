"""Int8: calibration, scales, and files for onnxruntime and MNN.

`calibrate` runs a float ONNX model on images and keeps `Statistics` of its tensors; `place` says which tensors are integers;
`make_recipe` chooses every scale; `to_qdq` and `export_mnn_int8` write them down.
"""

from irtool.engines.mnn.int8 import MnnInt8, export_mnn_int8
from irtool.engines.mnn.quantizer import mnn_own_int8
from irtool.engines.onnxruntime.qdq import to_qdq, weights_to_qdq
from irtool.quant.affine import Affine, Grid, affine, grid
from irtool.quant.calibrate import calibrate
from irtool.quant.observers import observe
from irtool.quant.placement import Layer, Placement, layers_of, place
from irtool.quant.scales import Recipe, Scheme, make_recipe
from irtool.quant.statistics import Statistics
from irtool.quant.weights import channel_scales

__all__ = [
    "Affine", "Grid", "Layer", "MnnInt8", "Placement", "Recipe", "Scheme", "Statistics", "affine", "calibrate", "channel_scales", "export_mnn_int8",
    "grid", "layers_of", "make_recipe", "mnn_own_int8", "observe", "place", "to_qdq", "weights_to_qdq",
]  # fmt: skip
