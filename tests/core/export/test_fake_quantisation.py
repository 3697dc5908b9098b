"""Eight bits played in float: grids, ranges, and where activations are stored."""

import pytest
import torch
from torch import Tensor, nn

from detloom.export.fake_quantisation import Range, rounded_weight, roundings


def seen(*values: float) -> Range:
    found = Range()
    found.see_(torch.tensor(values))
    return found


def test_grid_reaches_over_what_was_seen_in_255_steps() -> None:
    grid = seen(-1.0, 1.55).grid

    rounded = grid(torch.tensor([0.0, 0.004, 0.006, 1.55, 9.0, -9.0]))

    assert grid.scale.item() == pytest.approx(0.01)
    torch.testing.assert_close(rounded, torch.tensor([0.0, 0.0, 0.01, 1.55, 1.55, -1.0]))


@pytest.mark.parametrize("values", [(2.0, 3.0), (-3.0, -2.0), (0.1, 0.30007)])
def test_zero_is_always_on_the_grid(values: tuple[float, ...]) -> None:
    assert seen(*values).grid(torch.zeros(1)).item() == 0.0


def test_range_of_nothing_but_zeros_has_a_grid() -> None:
    assert seen(0.0).grid(torch.zeros(1)).isfinite().all()


def test_extremes_of_all_that_was_seen_are_kept_until_the_range_follows() -> None:
    found = seen(0.0, 255.0)
    found.see_(torch.tensor([0.0, 1.0]))

    kept = found.grid.scale.item()
    found.share = 0.5
    found.see_(torch.tensor([0.0, 1.0]))

    assert kept == pytest.approx(1.0)
    assert found.grid.scale.item() == pytest.approx(128 / 255)


def test_gradient_passes_through_the_rounding_and_stops_where_numbers_are_cut_off() -> None:
    values = torch.tensor([0.3, 0.7, 5.0], requires_grad=True)

    seen(0.0, 1.0).grid(values).sum().backward()  # type: ignore[no-untyped-call] # torch leaves it untyped

    assert values.grad is not None
    assert values.grad.tolist() == [1.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("module", "axis"), [(nn.Conv2d(2, 3, 1), 0), (nn.ConvTranspose2d(2, 3, 1), 1), (nn.Linear(2, 3), 0)]
)
def test_each_output_channel_has_a_scale_of_its_own(module: nn.Module, axis: int) -> None:
    weight = module.weight
    assert isinstance(weight, Tensor)
    factors = torch.tensor([1.0, 1e-3, 1e3]).reshape([-1 if each == axis else 1 for each in range(weight.dim())])
    uneven = weight.detach() * factors

    rounded = rounded_weight(uneven, module)

    assert ((rounded - uneven).abs() <= factors.abs() * weight.abs().max() / 254).all()
    assert not torch.equal(rounded, uneven)


class Net(nn.Module):
    """A chain in which some activations are done with the convolution before them, and some are not."""

    def __init__(self, *, in_place: bool) -> None:
        super().__init__()
        self.cut = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Identity(), nn.ReLU(inplace=in_place))
        self.smooth = nn.Sequential(nn.Conv2d(4, 4, 1), nn.SiLU(inplace=in_place))
        self.pool = nn.MaxPool2d(2)
        self.twice = nn.Conv2d(4, 4, 1)
        self.relu = nn.ReLU()
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        x_BCHW = self.twice(self.pool(self.smooth(self.cut(images_BCHW))))
        out_BCHW: Tensor = self.last(self.relu(x_BCHW)) + self.last(x_BCHW)
        return out_BCHW


@pytest.mark.parametrize("in_place", [True, False])
def test_activation_that_cuts_off_is_stored_in_the_place_of_its_convolution(in_place: bool) -> None:
    found = roundings(Net(in_place=in_place), torch.rand(1, 3, 4, 4))

    assert [(each.output, each.product) for each in found] == [
        ("cut.2", "cut.0"),
        ("smooth.0", "smooth.0"),
        ("smooth.1", ""),
        ("twice", "twice"),  # read by others than the activation, too
        ("relu", ""),
        ("last", "last"),
    ]


def test_looking_for_places_leaves_no_hooks() -> None:
    net = Net(in_place=False)

    roundings(net, torch.rand(1, 3, 4, 4))

    assert not any(module._forward_hooks for module in net.modules())
