"""Norms as after training, for nets that never were trained."""

from __future__ import annotations

from torch import Tensor, nn

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.PReLU)


def randomise(model: nn.Module) -> nn.Module:
    """Draw scales, shifts and statistics, in place: fresh ones are alike in all channels, so that a wrong index would not show."""
    for child in model.modules():
        if isinstance(child, _NORMS):
            for parameter in child.parameters(recurse=False):
                nn.init.uniform_(parameter, 0.5, 1.5)
            if isinstance(getattr(child, "bias", None), Tensor):
                nn.init.normal_(child.bias, std=0.3)
        if isinstance(getattr(child, "running_var", None), Tensor):
            nn.init.normal_(child.running_mean, std=0.3)
            nn.init.uniform_(child.running_var, 0.5, 2.0)
    return model
