"""Devices, precision and several processes, by Lightning Fabric; and batch statistics over all processes."""

from __future__ import annotations

import atexit
import contextlib
import os
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from irtool.errors import TrainError
from irtool.extras import needed
from irtool.train.ema import alike
from irtool.train.settings import Settings

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def launch(settings: Settings) -> Fabric:
    """A Fabric for this process: one device, or, under `torchrun`, one of several processes that average gradients.

    Raises:
        TrainError: the device does not exist, or Fabric is not installed.
    """
    fabric_class = needed("lightning_fabric", TrainError).Fabric
    world, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    try:
        with warnings.catch_warnings():
            # Advice about workers and sharded strategies that does not apply to these loops.
            warnings.simplefilter("ignore")
            fabric: Fabric = fabric_class(
                accelerator=settings.device,
                devices=local,
                num_nodes=max(1, world // local),
                strategy="ddp" if world > 1 else "auto",
                precision=settings.precision,
            )
            fabric.launch()
            if world > 1:
                atexit.register(_leave)
    except (RuntimeError, ValueError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise TrainError(f"cannot use this device ({reason})", where=f"device {settings.device}", remedy='Try device="cpu".') from error
    return fabric


def _leave() -> None:
    """Close the process group: gloo's threads that still run when Python is gone now and then abort a process that is done."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@contextlib.contextmanager
def returning(module: nn.Module) -> Iterator[None]:
    """After the block, the module's values stand in the very tensors they stood in before, whatever moved them meanwhile.

    A graph's view holds those tensors; if a change of device or memory format replaced them, the view would go on showing
    (and passes would slice) the weights from before the training. A buffer that the forward gave another size or type
    cannot stand in the old one: it stays what it has become, on the module's device.
    """
    parameters = [(parameter, parameter.data) for parameter in module.parameters()]
    buffers = {(owner, name): buffer for owner in module.modules() for name, buffer in owner.named_buffers(recurse=False)}
    device = parameters[0][1].device if parameters else torch.device("cpu")
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, home in parameters:
                if parameter.data_ptr() != home.data_ptr():
                    parameter.data = home.copy_(parameter.data)
            for owner in module.modules():
                for name, buffer in owner.named_buffers(recurse=False):
                    old = buffers.get((owner, name))
                    if buffer is not old:
                        owner._buffers[name] = old.copy_(buffer) if old is not None and alike(old, buffer) else buffer.to(device)


@contextlib.contextmanager
def shared_batch_statistics(module: nn.Module, processes: int) -> Iterator[None]:
    """While the block runs, batch norms in training mode use the statistics of all processes' batches together.

    Then several processes compute what one would with the whole batch. torch's SyncBatchNorm does the same on GPUs only, and
    replaces the modules; here they keep their class and their names. Batch norms that are not modules are left alone.
    """
    norms = [child for child in module.modules() if isinstance(child, nn.modules.batchnorm._BatchNorm)] if processes > 1 else []
    for norm in norms:
        norm.forward = _synchronised(norm)  # type: ignore[assignment, method-assign]
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


def _synchronised(norm: nn.modules.batchnorm._BatchNorm) -> Callable[[Tensor], Tensor]:
    local = norm.forward

    def forward(x: Tensor) -> Tensor:
        if not norm.training:
            return local(x)
        axes = [axis for axis in range(x.ndim) if axis != 1]
        shape = (1, -1, *(1,) * (x.ndim - 2))
        count = _sum_over_processes(x.new_tensor(float(x.numel() // x.shape[1])))
        mean = _sum_over_processes(x.sum(axes)) / count
        centred = x - mean.view(shape)
        # Two passes: the mean of squares less the squared mean loses the digits that matter.
        variance = _sum_over_processes(centred.square().sum(axes)) / count
        _track(norm, mean.detach(), (variance * (count / (count - 1))).detach())
        scaled = centred * (variance + norm.eps).rsqrt().view(shape)
        if norm.affine:
            return scaled * norm.weight.view(shape) + norm.bias.view(shape)
        return scaled

    return forward


def _track(norm: nn.modules.batchnorm._BatchNorm, mean: Tensor, variance: Tensor) -> None:
    if norm.running_mean is None or norm.running_var is None or norm.num_batches_tracked is None:
        return
    norm.num_batches_tracked.add_(1)
    # momentum=None is a plain average over all batches seen.
    share = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), share)
    norm.running_var.lerp_(variance.to(norm.running_var.dtype), share)


class _SumOverProcesses(torch.autograd.Function):
    """A sum over processes. Each term enters every process's result alike, so gradients are summed over processes too."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        total = x.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        torch.distributed.all_reduce(total)
        return total


def _sum_over_processes(x: Tensor) -> Tensor:
    result: Tensor = _SumOverProcesses.apply(x)
    return result
