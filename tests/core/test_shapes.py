"""Shapes without numbers, held against torch's own."""

import subprocess
import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from detloom.shapes import shapes_only


class Tensors(NamedTuple):
    """Maps of different widths, and a row of them."""

    a: Tensor
    b: Tensor
    row: Tensor


def tensors() -> Tensors:
    return Tensors(torch.rand(2, 3, 4, 4), torch.rand(2, 5, 4, 4), torch.rand(4))


@pytest.mark.parametrize(
    "make",
    [
        lambda t: t.a + t.row,
        lambda t: t.a * 2,
        lambda t: 1 / (t.row + t.a),
        lambda t: t.a > t.row,
        lambda t: (t.a > 0).float() + t.a.double(),
        lambda t: torch.cat((t.a, t.b), 1),
        lambda t: torch.cat((t.a, t.b), dim=-3),
        lambda t: t.a.sum(dim=(2, 3)) + t.a.amax((2, 3)),
        lambda t: nn.functional.silu(t.a, inplace=True),
        lambda t: torch.where(t.a > 0, t.a, t.row),
        lambda t: nn.functional.interpolate(t.b, scale_factor=2.0),
        lambda t: nn.functional.interpolate(t.b, size=(7, 3)),
        lambda t: t.a.sum(1) + t.row.sum(),
        lambda t: t.a.sum(dim=(-1, 0), keepdim=True),
        lambda t: t.a.sum(dim=(-1, 1)),
        lambda t: (t.a > 0).sum(dim=1),
        lambda t: nn.functional.conv2d(t.b, t.a.new_zeros(6, 5, 3, 2), None, (2, 1), (1, 0), (1, 2)),
        lambda t: nn.functional.conv_transpose2d(t.b, t.a.new_zeros(5, 2, 3, 2), None, 2, 1, 1),
        lambda t: nn.functional.conv1d(t.a[0], t.a.new_zeros(8, 1, 3), groups=4),
        lambda t: nn.functional.max_pool2d(t.a, 3, 2, ceil_mode=True),
        lambda t: nn.functional.max_pool2d(t.a, (2, 1), return_indices=True)[1],
        lambda t: nn.functional.max_pool2d(t.b, 5, 1, 2),
        lambda t: nn.functional.batch_norm(t.a, torch.ones_like(t.a[0, :, 0, 0]), torch.ones_like(t.a[0, :, 0, 0])),
    ],
)
def test_shape_and_type_are_those_of_real_tensors(make: Callable[[Tensors], Tensor]) -> None:
    real = make(tensors())

    with shapes_only():
        found = make(tensors())

    assert found.is_meta
    assert (found.shape, found.dtype) == (real.shape, real.dtype)


def test_what_does_not_fit_is_an_error_as_ever() -> None:
    with shapes_only(), pytest.raises(RuntimeError):
        nn.functional.conv2d(torch.rand(1, 3, 8, 8), torch.rand(4, 2, 3, 3))


@pytest.mark.parametrize(
    "make",
    [
        lambda t: t.a + t.b,
        lambda t: t.a.add(t.b, alpha=2),
        lambda t: t.row[None].add_(torch.rand(2, 4)),
        lambda t: t.row.mul_(t.a),
        lambda t: torch.where(t.a > 0, t.a, t.b),
        lambda t: torch.cat((t.a, t.b[..., 1:]), 1),
        lambda t: t.a.sum(4),
        lambda t: nn.functional.max_pool2d(t.a, 3, 1, 2),
        lambda t: nn.functional.conv2d(t.b, torch.rand(4, 5, 1, 1), torch.rand(3)),
        lambda t: nn.functional.conv2d(t.a, torch.rand(4, 1, 1, 1), groups=3),
        lambda t: nn.functional.conv_transpose2d(t.b, torch.rand(2, 4, 1, 1)),
        lambda t: nn.BatchNorm2d(3).eval()(t.b),
        lambda t: nn.BatchNorm2d(3).train()(t.b),
        lambda t: nn.functional.linear(t.a, torch.rand(2, 3)),
    ],
)
def test_what_real_tensors_refuse_is_refused(make: Callable[[Tensors], Tensor]) -> None:
    with pytest.raises((RuntimeError, IndexError)):
        make(tensors())

    with shapes_only(), pytest.raises((RuntimeError, IndexError)):
        make(tensors())


def test_operations_are_those_of_torchs_counter() -> None:
    def model() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, groups=1),
            nn.BatchNorm2d(8),
            nn.SiLU(),
            nn.ConvTranspose2d(8, 4, 2, 2, groups=2),
            nn.Flatten(),
            nn.Linear(4 * 64, 10),
        ).eval()

    with FlopCounterMode(display=False) as expected:
        model()(torch.rand(1, 3, 8, 8))
    with shapes_only() as found:
        model()(torch.rand(1, 3, 8, 8))

    assert found.operations == expected.get_total_flops()


def test_checking_a_recipe_imports_neither_torchs_compiler_nor_what_reads_pictures() -> None:
    code = (
        "import sys\nfrom detloom.assembly import check\ncheck('yolov7')\n"
        "late = {'torch._dynamo', 'sympy', 'timm', 'torchvision', 'accelerate', 'cv2'} & set(sys.modules)\n"
        "assert not late, late\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
