"""Models to measure on: torchvision's and timm's, randomised so that no output is trivially the same."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import nn

TOO_LARGE = frozenset({"convnext_large", "regnet_y_128gf", "vit_h_14", "vit_l_16", "vit_l_32"})
"""Left out for memory unless asked for: over 190 million parameters, and a float64 check holds several copies."""


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draw batch norm statistics and affine values, and whatever an initialiser left at zero (heads, layer scales)."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator) * 0.3)
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
    for parameter in model.parameters():
        if parameter.numel() and (
            float(parameter.detach().abs().max()) < 1e-4 or float(parameter.detach().std() if parameter.numel() > 1 else 0) == 0
        ):
            parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def torchvision_names() -> list[str]:
    """Every model that torchvision lists outside `quantization`."""
    return [name for name in torchvision.models.list_models() if not name.startswith("quantized_")]


TIMM_OPTIONS: dict[str, dict[str, Any]] = {
    "aimv2_1b_patch14_224": {"depth": 4},
    "cait_m36_384": {"depth": 12, "img_size": 224},
    "deepseek_vit_412m": {"depth": 6},
    "samvit_base_patch16": {"img_size": 256},
    "sequencer2d_l": {"img_size": 56},
    "xcit_large_24_p8_224": {"depth": 8, "img_size": 64},
}
"""Models that are built less deep, or for smaller images, to fit memory and time; the blocks are the model's own."""


def timm_names() -> list[str]:
    """The first model of each of timm's families."""
    import timm

    names = (timm.list_models(module=module) for module in timm.list_modules())
    return [found[0] for found in names if found]


def _classification(name: str) -> tuple[nn.Module, tuple[Any, ...], str | None]:
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = torchvision.models.get_model(name, weights=None, **options)
    size = {"inception_v3": 96}.get(name, 224 if name.startswith(("vit", "swin", "maxvit")) else 64)
    return model, (torch.randn(1, 3, size, size),), None


def _segmentation(name: str) -> tuple[nn.Module, tuple[Any, ...], str | None]:
    return torchvision.models.get_model(name, weights=None, weights_backbone=None), (torch.randn(2, 3, 64, 64),), None


def _detection(name: str) -> tuple[nn.Module, tuple[Any, ...], str | None]:
    size = {} if name.startswith("ssd") else {"min_size": 128, "max_size": 128}
    return torchvision.models.get_model(name, weights=None, weights_backbone=None, **size), ([torch.randn(3, 128, 128)],), "backbone"


def _video(name: str) -> tuple[nn.Module, tuple[Any, ...], str | None]:
    shape = (1, 3, 16, 224, 224) if name.startswith(("mvit", "swin3d")) else (1, 3, 14, 224, 224) if name == "s3d" else (1, 3, 4, 32, 32)
    return torchvision.models.get_model(name, weights=None), (torch.randn(shape),), None


def _flow(name: str) -> tuple[nn.Module, tuple[Any, ...], str | None]:
    return torchvision.models.get_model(name, weights=None), (torch.randn(1, 3, 128, 128), torch.randn(1, 3, 128, 128)), "feature_encoder"


def _timm(name: str) -> tuple[nn.Module, tuple[Any, ...], str | None]:
    """The model and the smallest image that it takes: few pixels make the check fast, and channels do not depend on them."""
    import timm

    options = TIMM_OPTIONS.get(name, {})
    model = randomise(timm.create_model(name, pretrained=False, **options))
    channels, full, _ = model.default_cfg["input_size"]
    full = options.get("img_size", full)
    least = (model.default_cfg.get("min_input_size") or (0, 0, 0))[1]
    smaller = sorted(size for size in {64, 96, 128, 192, least} if max(least, 1) <= size < full)
    sizes = [full] if model.default_cfg.get("fixed_input_size") else [*smaller, full]
    for size in sizes:
        image = torch.randn(1, channels, size, size)
        try:
            with torch.no_grad():
                model(image)
        except (RuntimeError, ValueError, AssertionError, IndexError):
            continue
        return model, (image,), None
    raise ValueError(f"{name} takes no image of {sizes}")


_BUILDERS: dict[str, Callable[[str], tuple[nn.Module, tuple[Any, ...], str | None]]] = {
    "torchvision.models.segmentation": _segmentation,
    "torchvision.models.detection": _detection,
    "torchvision.models.video": _video,
    "torchvision.models.optical_flow": _flow,
}


def kind_of(name: str) -> str:
    """classification, segmentation, detection, video, optical_flow or timm."""
    if name.startswith("timm:"):
        return "timm"
    module = torchvision.models.get_model_builder(name).__module__
    return next((key.rsplit(".", 1)[1] for key in _BUILDERS if module.startswith(key)), "classification")


def build(name: str) -> tuple[nn.Module, tuple[Any, ...], str | None]:
    """A model, inputs, and the part to trace if the whole cannot be traced."""
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    if name.startswith("timm:"):
        return _timm(name.removeprefix("timm:"))
    module = torchvision.models.get_model_builder(name).__module__
    builder = next((made for key, made in _BUILDERS.items() if module.startswith(key)), _classification)
    model, inputs, within = builder(name)
    return randomise(model), inputs, within
