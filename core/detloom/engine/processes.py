"""Device, precision and processes, by accelerate; batch statistics over all processes.

Shape letters: B images, C channels, H and W rows and columns.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs, parse_flag_from_env
from torch import Tensor, nn

from detloom.engine.settings import Precision, TrainSettings
from detloom.errors import PluginError, RecipeError

__all__ = ["SharedBatchNorm", "numerics", "open_accelerator", "precision_of", "share_statistics"]

MIXED = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}
# Processes wait for one another while the main one evaluates and writes; torch's ten minutes can be less than that.
LONGEST_WAIT = timedelta(days=1)


def open_accelerator(settings: TrainSettings) -> Accelerator:
    """Return an accelerator of the recipe's precision, whatever this process had before.

    ``ACCELERATE_USE_CPU=true`` in the environment leaves a GPU alone.

    Raises:
        RecipeError: The device has no such precision.
    """
    if AcceleratorState._shared_state:  # noqa: SLF001 - accelerate keeps one precision a process, and offers no other way
        AcceleratorState._reset_state()  # noqa: SLF001 - the same; the process group stays
    if settings.deterministic:
        # cuBLAS reads this once, when a GPU is first used, and repeats its sums only with it.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    device_type = _device_type()
    precision = precision_of(settings, device_type)
    return Accelerator(
        cpu=device_type == "cpu",
        mixed_precision=MIXED[precision],
        kwargs_handlers=[InitProcessGroupKwargs(timeout=LONGEST_WAIT)],
    )


def precision_of(settings: TrainSettings, device_type: str) -> Precision:
    """Return the precision in which a device runs the forward pass.

    Raises:
        RecipeError: The recipe names one that the device does not have.
    """
    if settings.precision == "auto":
        return "bfloat16" if _has_bfloat16(device_type) else "float32"
    if settings.precision == "float16" and device_type == "cpu":
        raise RecipeError(
            "[train] precision = 'float16' needs a GPU, and none is at hand; 'auto' takes bfloat16 where the "
            "processor has it, else float32"
        )
    return settings.precision


@contextmanager
def numerics(settings: TrainSettings, device: torch.device) -> Iterator[None]:
    """Compute repeatably on a CPU, and on a GPU where the recipe asks for it; undone at the end."""
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]  # a property of the module's class
    )
    on_cpu = device.type == "cpu"
    # On a CPU a plugin's operation without a repeatable form warns; on a GPU, where it was asked for, it fails.
    torch.use_deterministic_algorithms(on_cpu or settings.deterministic, warn_only=on_cpu)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # the same
    try:
        with torch.backends.cudnn.flags(
            enabled=True,
            benchmark=not settings.deterministic,
            deterministic=settings.deterministic,
            allow_tf32=torch.backends.cudnn.allow_tf32,
        ):
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = before[2]  # type: ignore[attr-defined]  # the same


def share_statistics(model: nn.Module, device: torch.device) -> nn.Module:
    """Return the model with batch statistics taken over all processes; parameter names stay.

    Raises:
        PluginError: On a CPU, a norm layer of a kind that cannot be shared there.
    """
    if device.type != "cpu":
        # timm's own converter knows torch's layers and its own, which have an activation inside.
        from timm.layers.norm_act import convert_sync_batchnorm

        converted: nn.Module = convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]  # timm is untyped
        return converted
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.modules.batchnorm._BatchNorm):  # noqa: SLF001 - torch has no public name for all batch norms
            if type(module) not in (nn.BatchNorm1d, nn.BatchNorm2d):
                raise PluginError(
                    f"{path}: {type(module).__name__} has no statistics shared over processes on a CPU; "
                    "train in one process, or on GPUs"
                )
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, SharedBatchNorm.from_norm(module))
    return model


class SharedBatchNorm(nn.modules.batchnorm._BatchNorm):  # noqa: SLF001 - torch has no public name for all batch norms
    """Batch norm over all processes, on any device; torch's own exists for GPUs alone.

    Processes have equal numbers of images, as the loader gives them.
    """

    @classmethod
    def from_norm(cls, norm: nn.modules.batchnorm._BatchNorm) -> "SharedBatchNorm":
        """Return the same layer with shared statistics; parameters and buffers are the same tensors."""
        shared = cls(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        shared.weight, shared.bias = norm.weight, norm.bias
        shared.running_mean, shared.running_var = norm.running_mean, norm.running_var
        shared.num_batches_tracked = norm.num_batches_tracked
        shared.train(norm.training)
        return shared

    def forward(self, levels_BCHW: Tensor) -> Tensor:
        """Normalise; in training by the mean and variance of all processes' images."""
        if not self.training:
            return super().forward(levels_BCHW)
        axes = [0, *range(2, levels_BCHW.dim())]
        wide_BCHW = levels_BCHW.to(torch.promote_types(levels_BCHW.dtype, torch.float32))
        # Two passes, as accurate as one process: squares of deviations, not of values.
        mean_C = _mean_over_processes(wide_BCHW.mean(axes))
        deviation_BCHW = wide_BCHW - _channelwise(mean_C, wide_BCHW)
        variance_C = _mean_over_processes(deviation_BCHW.square().mean(axes))
        self._track_(mean_C, variance_C, levels_BCHW.numel() // levels_BCHW.shape[1] * dist.get_world_size())
        scale_C = torch.rsqrt(variance_C + self.eps)
        if self.weight is not None:
            scale_C = scale_C * self.weight
        result_BCHW = deviation_BCHW * _channelwise(scale_C, wide_BCHW)
        if self.bias is not None:
            result_BCHW = result_BCHW + _channelwise(self.bias, wide_BCHW)
        return result_BCHW.to(levels_BCHW.dtype)

    def _track_(self, mean_C: Tensor, variance_C: Tensor, count: int) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            share = self.momentum if self.momentum is not None else 1.0 / float(self.num_batches_tracked)
            self.running_mean.lerp_(mean_C.detach(), share)
            self.running_var.lerp_(variance_C.detach() * (count / max(count - 1, 1)), share)

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: A002 - torch's name
        """Accept any number of axes."""


class _MeanOverProcesses(torch.autograd.Function):
    """A mean whose gradient reaches every process that had a part in it."""

    @staticmethod
    def forward(_: Any, values_C: Tensor) -> Tensor:
        mean_C = values_C.clone()
        dist.all_reduce(mean_C)
        return mean_C / dist.get_world_size()

    @staticmethod
    def backward(_: Any, gradient_C: Tensor) -> Tensor:
        return _MeanOverProcesses.forward(None, gradient_C)


def _mean_over_processes(values_C: Tensor) -> Tensor:
    mean_C: Tensor = _MeanOverProcesses.apply(values_C)
    return mean_C


def _channelwise(values_C: Tensor, like_BCHW: Tensor) -> Tensor:
    return values_C.reshape(1, -1, *[1] * (like_BCHW.dim() - 2))


def _device_type() -> str:
    """Return the kind of device that accelerate takes."""
    if parse_flag_from_env("ACCELERATE_USE_CPU"):
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _has_bfloat16(device_type: str) -> bool:
    if device_type == "cuda":
        # Emulated bfloat16 is slower than float32.
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    if device_type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()  # noqa: SLF001 - torch has no public question
    return False
