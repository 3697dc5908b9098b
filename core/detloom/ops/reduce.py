"""Numbers that all processes of a training must agree on."""

import torch.distributed as dist
from torch import Tensor

__all__ = ["mean_over_processes"]


def mean_over_processes(values_X: Tensor) -> Tensor:
    """Return the mean of a tensor over all processes, float32, without gradient; itself where there is one."""
    mean_X = values_X.detach().float()
    if not (dist.is_available() and dist.is_initialized()):
        return mean_X
    # A copy, because the collective works in place.
    mean_X = mean_X.clone()
    dist.all_reduce(mean_X)
    return mean_X / dist.get_world_size()
