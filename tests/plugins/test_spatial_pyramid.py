from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from detloom_plugins.spatial_pyramid import PyramidPooling, SppCsp, SppTiny


def maps(channels: int, size: int = 8) -> Tensor:
    return torch.rand(1, channels, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [1, 3, 8, 20])
def test_cascaded_pools_equal_the_parallel_ones(size: int) -> None:
    x = maps(2, size) - 0.5

    found = PyramidPooling()(x)

    for pooled, window in zip(found, (5, 9, 13), strict=True):
        assert torch.equal(pooled, functional.max_pool2d(x, window, 1, window // 2))


@pytest.mark.parametrize("make", [SppTiny, SppCsp])
def test_pyramids_keep_the_size(make: Callable[[int, int], nn.Module]) -> None:
    assert make(6, 4)(maps(6)).shape == (1, 4, 8, 8)
