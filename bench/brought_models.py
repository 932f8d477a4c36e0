"""The models of `bench/brought.py`: those of packages, with random weights, and a few that are written here.

The packages live in `.bench-venv` alone; nothing of irtool imports them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Brought:
    """A model as its users trace it.

    Attributes:
        model: with random weights, in eval mode but where the name says otherwise.
        shape: of the one image, or clip, that it takes.
        step: what image sizes are multiples of.
    """

    model: nn.Module
    shape: tuple[int, ...]
    step: int = 32


Build = Callable[[], Brought]


def _ultralytics(file: str, mode: str) -> Brought:
    from ultralytics.nn import tasks

    kind = {"yolov8n-seg": "SegmentationModel", "rtdetr-l": "RTDETRDetectionModel"}.get(file, "DetectionModel")
    model = getattr(tasks, kind)(f"{file}.yaml", verbose=False).eval()
    if mode == "export":  # as its own exporter sets it up
        for module in model.modules():
            if hasattr(module, "export"):
                module.export, module.format, module.dynamic = True, "onnx", False
    return Brought(model.train(mode == "train"), (1, 3, 160, 160))


def _ultralytics_models() -> Iterator[tuple[str, Build]]:
    for file in ("yolov3-tiny", "yolov8n", "yolov8n-seg", "yolov10n", "yolo11n", "yolo12n", "rtdetr-l"):
        for mode in ("eval", "train", "export"):
            if not (file == "rtdetr-l" and mode == "train"):  # its loss needs targets inside of forward
                yield f"ultralytics/{file}/{mode}", lambda file=file, mode=mode: _ultralytics(file, mode)


def _transformers(kind: str, size: int, step: int, **options: Any) -> Brought:
    import transformers

    config = getattr(transformers, options.pop("config"))(**options)
    return Brought(getattr(transformers, kind)(config).eval(), (1, 3, size, size), step)


def _with_backbone(kind: str, size: int, config: str, backbone: str, features: dict[str, Any], **options: Any) -> Brought:
    import transformers

    return _transformers(kind, size, 32, config=config, backbone_config=getattr(transformers, backbone)(**features), **options)


def _superpoint() -> Brought:
    import transformers

    return Brought(transformers.SuperPointForKeypointDetection(transformers.SuperPointConfig()).eval(), (1, 3, 128, 128), 8)


_STAGES = ["stage1", "stage2", "stage3", "stage4"]
_CONVNEXT = {"out_features": _STAGES, "hidden_sizes": [96, 192, 384, 768]}  # its own default is a tuple, which its backbone refuses
TRANSFORMERS: dict[str, Build] = {
    "resnet": lambda: _transformers("ResNetForImageClassification", 128, 32, config="ResNetConfig"),
    "regnet": lambda: _transformers("RegNetForImageClassification", 128, 32, config="RegNetConfig"),
    "convnextv2": lambda: _transformers("ConvNextV2ForImageClassification", 128, 32, config="ConvNextV2Config"),
    # between multiples of 64 it resizes features: another branch, which the graph does not hold, and says so
    "mobilevit": lambda: _transformers("MobileViTForImageClassification", 128, 64, config="MobileViTConfig", image_size=128),
    "mobilevit-seg": lambda: _transformers("MobileViTForSemanticSegmentation", 128, 64, config="MobileViTConfig", image_size=128),
    "segformer": lambda: _transformers("SegformerForSemanticSegmentation", 128, 32, config="SegformerConfig"),
    "upernet": lambda: _with_backbone("UperNetForSemanticSegmentation", 128, "UperNetConfig", "ConvNextConfig", _CONVNEXT),
    "upernet-resnet": lambda: _with_backbone(
        "UperNetForSemanticSegmentation", 128, "UperNetConfig", "ResNetConfig", {"out_features": _STAGES, "depths": [2, 2, 2, 2]},
        use_auxiliary_head=False,
    ),
    "detr": lambda: _with_backbone(
        "DetrForObjectDetection", 128, "DetrConfig", "ResNetConfig", {"out_features": ["stage4"]}, use_timm_backbone=False,
        use_pretrained_backbone=False, encoder_layers=3, decoder_layers=3,
    ),
    "glpn": lambda: _transformers("GLPNForDepthEstimation", 128, 32, config="GLPNConfig"),
    "superpoint": _superpoint,
}  # fmt: skip

SMP_DECODERS = ("Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet", "PAN", "DeepLabV3", "DeepLabV3Plus", "UPerNet", "Segformer")


def _smp(decoder: str, encoder: str) -> Brought:
    import segmentation_models_pytorch as smp

    return Brought(getattr(smp, decoder)(encoder, encoder_weights=None, in_channels=3, classes=4).eval(), (1, 3, 128, 128))


def _efficientnet() -> Brought:
    from efficientnet_pytorch import EfficientNet

    return Brought(EfficientNet.from_name("efficientnet-b0").eval(), (1, 3, 128, 128))


def _monai(kind: str, volume: int, *args: Any, **options: Any) -> Brought:
    from monai.networks import nets

    dims = options.get("spatial_dims", args[0] if args else 2)
    channels = 1 if kind != "SegResNet" else 3
    return Brought(getattr(nets, kind)(*args, **options).eval(), (1, channels, *[volume] * dims), 16)


MONAI: dict[str, Build] = {
    "unet": lambda: _monai(
        "UNet", 64, spatial_dims=2, in_channels=1, out_channels=3, channels=(16, 32, 64, 128), strides=(2, 2, 2), num_res_units=2
    ),
    "unet-3d": lambda: _monai(
        "UNet", 32, spatial_dims=3, in_channels=1, out_channels=3, channels=(16, 32, 64), strides=(2, 2), num_res_units=2
    ),
    "segresnet": lambda: _monai("SegResNet", 64, spatial_dims=2, in_channels=3, out_channels=3, init_filters=16),
    "dynunet": lambda: _monai(
        "DynUNet", 64, spatial_dims=2, in_channels=1, out_channels=3, kernel_size=[3, 3, 3, 3], strides=[1, 2, 2, 2],
        upsample_kernel_size=[2, 2, 2],
    ),
    "vnet": lambda: _monai("VNet", 32, spatial_dims=3, in_channels=1, out_channels=2),
}  # fmt: skip

PYTORCHCV = (
    "alexnet", "airnet50_1x64d_r2", "bagnet9", "bam_resnet18", "bninception", "cbam_resnet18", "cgnet_cityscapes",
    "channelnet", "condensenet74_c4_g4", "dabnet_cityscapes", "darknet_ref", "darts", "densenet121", "diaresnet18", "dicenet_wd5",
    "diracnet18v2", "dla34", "dpn68", "drnc26", "efficientnet_b0", "enet_cityscapes", "erfnet_cityscapes", "espnetv2_wd2",
    "fastscnn_cityscapes", "fbnet_cb", "fdmobilenet_wd4", "fishnet99", "ghostnet", "hardnet39ds", "hrnet_w18_small_v1",
    "ibn_resnet50", "igcv3_wd4", "inceptionv4", "irevnet301", "lednet_cityscapes", "lffd20x5s320v2_widerface",
    "linknet_cityscapes", "menet108_8x1_g3", "mixnet_s", "mnasnet_b1", "mobilenet_w1", "msdnet22", "nasnet_4a1056",
    "octresnet10_ad2", "peleenet", "pnasnet5large", "polynet", "preresnet18", "proxylessnas_cpu", "pyramidnet101_a360",
    "resattnet56", "resnesta18", "resneta10", "revnet38", "scnet50", "segnet_cityscapes", "selecsls42", "senet16", "seresnext50_32x4d",
    "shufflenet_g3_wd4", "shufflenetv2_wd2", "simplepose_resnet18_coco", "sinet_cityscapes", "sknet50", "sparsenet121", "spnasnet",
    "sqnet_cityscapes", "sqnxt23_w1", "superpointnet", "tresnet_m", "unet_cityscapes",
)  # fmt: skip
"""A model of each family that takes one image."""


def _pytorchcv(name: str) -> Brought:
    from pytorchcv.model_provider import get_model

    large = name.endswith(("_cityscapes", "_coco", "_widerface"))
    try:
        model = get_model(name, pretrained=False, **({"in_size": (128, 128)} if large else {}))
    except TypeError:
        model = get_model(name, pretrained=False)
    size = tuple(getattr(model, "in_size", (256, 256)))
    if name == "superpointnet":  # goes over its points one by one
        return Brought(model.eval(), (1, 1, 64, 64), 8)
    return Brought(model.eval(), (1, 3, *(min(side, 352) for side in size)))


class Edsr(nn.Module):
    """Residual blocks without batch norms and a pixel shuffle, after EDSR (Lim et al., 2017)."""

    def __init__(self, width: int = 64, blocks: int = 8, scale: int = 2) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.bodies = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(True), nn.Conv2d(width, width, 3, padding=1))
            for _ in range(blocks)
        )
        self.up = nn.Sequential(nn.Conv2d(width, width * scale**2, 3, padding=1), nn.PixelShuffle(scale))
        self.tail = nn.Conv2d(width, 3, 3, padding=1)
        self.register_buffer("mean", torch.tensor([0.45, 0.44, 0.40]).view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = first = self.head(x - self.mean)
        for body in self.bodies:
            x = x + body(x) * 0.1
        out: Tensor = self.tail(self.up(x + first)) + self.mean
        return out


class _Dense(nn.Module):
    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(width + n * growth, growth if n < 4 else width, 3, padding=1) for n in range(5))

    def forward(self, x: Tensor) -> Tensor:
        found = [x]
        for conv in self.convs[:-1]:
            found.append(F.leaky_relu(conv(torch.cat(found, 1)), 0.2, inplace=True))
        out: Tensor = self.convs[-1](torch.cat(found, 1)) * 0.2 + x
        return out


class Rrdb(nn.Module):
    """Dense blocks inside residuals, upsampled by nearest neighbours, after ESRGAN (Wang et al., 2018)."""

    def __init__(self, width: int = 32, blocks: int = 4) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 3, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Sequential(*(_Dense(width, 16) for _ in range(3))) for _ in range(blocks))
        self.ups = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = first = self.first(x)
        for block in self.blocks:
            x = x + 0.2 * block(x)
        x = first + self.ups[0](x)
        for up in self.ups[1:]:
            x = F.leaky_relu(up(F.interpolate(x, scale_factor=2, mode="nearest")), 0.2)
        out: Tensor = self.last(x)
        return out


class _Separated(nn.Module):
    """A convolution over places and one over time, after R(2+1)D (Tran et al., 2018)."""

    def __init__(self, cin: int, cout: int, stride: int = 1) -> None:
        super().__init__()
        middle = cin * cout * 27 // (cin * 9 + cout * 3)
        self.place = nn.Conv3d(cin, middle, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False)
        self.time = nn.Conv3d(middle, cout, (3, 1, 1), (stride, 1, 1), (1, 0, 0), bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm3d(middle), nn.BatchNorm3d(cout)])
        self.short = nn.Conv3d(cin, cout, 1, stride, bias=False) if stride > 1 or cin != cout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norms[1](self.time(F.relu(self.norms[0](self.place(x))))) + self.short(x))


class Video(nn.Module):
    """Clips of frames (n, channels, time, height, width) to classes."""

    def __init__(self, whole: bool) -> None:
        super().__init__()
        if whole:
            block: Any = lambda cin, cout, stride=1: nn.Sequential(  # noqa: E731
                nn.Conv3d(cin, cout, 3, stride, 1), nn.BatchNorm3d(cout), nn.ReLU(True)
            )
        else:
            block = _Separated
        self.stem = nn.Sequential(nn.Conv3d(3, 32, (3, 7, 7), (1, 2, 2), (1, 3, 3), bias=False), nn.BatchNorm3d(32), nn.ReLU())
        self.blocks = nn.Sequential(block(32, 32), block(32, 64, 2), block(64, 64), block(64, 128, 2))
        self.classes = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classes(F.adaptive_avg_pool3d(self.blocks(self.stem(x)), 1).flatten(1))
        return out


class FramesInTurn(nn.Module):
    """A two-dimensional net on every frame, and a mean over time: frames lie in the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.f = nn.Conv2d(3, 32, 3, 2, 1), nn.Conv2d(32, 64, 3, 2, 1), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        n, c, t, h, w = x.shape
        y = self.b(F.relu(self.a(x.transpose(1, 2).reshape(n * t, c, h, w))))
        out: Tensor = self.f(F.relu(y).mean((2, 3)).view(n, t, -1).mean(1))
        return out


OWN: dict[str, Build] = {
    "edsr": lambda: Brought(Edsr().eval(), (1, 3, 48, 48), 8),
    "rrdb": lambda: Brought(Rrdb().eval(), (1, 3, 32, 32), 8),
    "video-3d": lambda: Brought(Video(True).eval(), (1, 3, 8, 64, 64), 16),
    "video-2+1d": lambda: Brought(Video(False).eval(), (1, 3, 8, 64, 64), 16),
    "video-frames": lambda: Brought(FramesInTurn().eval(), (1, 3, 8, 32, 32), 8),
}


def models() -> dict[str, Build]:
    """All models by name: `package/model`, and the mode of the head for detectors."""
    found = dict(_ultralytics_models())
    found |= {f"transformers/{name}": build for name, build in TRANSFORMERS.items()}
    for encoder in ("resnet18", "mobilenet_v2"):
        found |= {f"smp/{d}/{encoder}": lambda d=d, encoder=encoder: _smp(d, encoder) for d in SMP_DECODERS}  # type: ignore[misc]
    found["efficientnet_pytorch/b0"] = _efficientnet
    found |= {f"monai/{name}": build for name, build in MONAI.items()}
    found |= {f"own/{name}": build for name, build in OWN.items()}
    found |= {f"pytorchcv/{name}": lambda name=name: _pytorchcv(name) for name in PYTORCHCV}  # type: ignore[misc]
    return found


def build(name: str) -> Brought:
    """Build a model with weights of one seed that hand on what they are given, and batch norms that have seen noise."""
    from zoo import randomise

    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        brought = models()[name]()
    training = brought.model.training
    with torch.no_grad():
        normed = any(isinstance(module, _NORMS) for module in brought.model.modules())
        for module in brought.model.modules():  # as they come, many initialise so small that hardly anything of the image is left
            if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear" if normed else "relu")
            elif isinstance(module, _NORMS) and module.weight is not None:
                nn.init.uniform_(module.weight, 0.5, 1.5)
        randomise(brought.model)
        _see_noise(brought)
    brought.model.train(training)
    return brought


_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)


def _see_noise(brought: Brought) -> None:
    """Let batch norms take the statistics of noise, then put these off a little: equal ones would hide what is left out of them."""
    norms = [module for module in brought.model.eval().modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    norms = [norm for norm in norms if norm.running_mean is not None]
    before = [(norm.momentum, norm.running_mean.clone(), norm.running_var.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    try:
        brought.model(torch.rand(4, *brought.shape[1:], generator=torch.Generator().manual_seed(0)))
    finally:
        brought.model.eval()
        for norm, (momentum, _, _) in zip(norms, before, strict=True):
            norm.momentum = momentum
    for norm, (_, mean, var) in zip(norms, before, strict=True):
        scale = norm.running_var.clamp_(min=1e-4)
        norm.running_mean += mean * scale.sqrt()
        norm.running_var = scale * var
