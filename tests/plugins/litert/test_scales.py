"""Ranges and scales of 8-bit numbers."""

import numpy as np
import pytest
import torch
from litert_cases import Maps, network_of, pictures
from torch import Tensor, nn

from detloom.errors import ExportError
from detloom_plugins.litert import graph_of
from detloom_plugins.litert.graph import Graph, Scale
from detloom_plugins.litert.pointwise import Requantise
from detloom_plugins.litert.ranges import EVERYTHING, observe
from detloom_plugins.litert.scales import PICTURE, Range, choose_scales, scale_of, separate
from detloom_plugins.litert.weights import weight_scales


def extremes_of(graph: Graph, pictures_NCHW: Tensor) -> dict[str, Range]:
    return observe(graph, pictures_NCHW, calibration="min-max", percentile=100)[EVERYTHING]


def scales_of(module: nn.Module) -> tuple[Graph, dict[str, Scale]]:
    graph = separate(graph_of(network_of(module)), ())
    return graph, choose_scales(graph, extremes_of(graph, pictures()), ())


@pytest.mark.parametrize("numbers", [(-1.0, 3.0), (0.5, 2.0), (-4.0, -1.0), (0.0, 0.0)])
def test_scale_holds_zero_exactly_and_both_ends_within_a_step(numbers: tuple[float, float]) -> None:
    scale = scale_of(numbers)
    least, most = ((q - scale.zero_point) * scale.scale for q in (-128, 127))

    assert -128 <= scale.zero_point <= 127
    assert least <= min(numbers[0], 0) + scale.scale
    assert most >= max(numbers[1], 0) - scale.scale


def test_pixels_are_numbers_of_the_picture() -> None:
    pixels = np.arange(256)

    assert (np.round(pixels / 255 / PICTURE.scale) + PICTURE.zero_point).tolist() == (pixels - 128).tolist()


def test_what_is_joined_has_one_scale_that_holds_all() -> None:
    def joined(held: nn.ModuleList, x_BCHW: Tensor) -> Tensor:
        return torch.cat([held[0](x_BCHW), 10 * held[1](x_BCHW)], 1)

    graph, scales = scales_of(Maps((joined, [nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)])))
    join = graph.nodes[graph.outputs[0]]

    assert len({scales[name] for name in (*join.inputs, join.name)}) == 1


def test_picture_that_is_joined_with_others_changes_its_scale() -> None:
    graph, scales = scales_of(Maps((lambda held, x: torch.cat([x, held[0](x)], 1), [nn.Conv2d(3, 4, 1)])))
    changes = [node for node in graph.nodes.values() if isinstance(node.operation, Requantise)]

    assert [node.inputs for node in changes] == [(graph.picture,)]
    assert scales[changes[0].name] == scales[graph.outputs[0]] != scales[graph.picture] == PICTURE


def test_parts_of_the_picture_keep_its_scale() -> None:
    _, scales = scales_of(Maps((lambda _, x: torch.cat([x[..., ::2], x[..., 1::2]], 1), [])))

    assert set(scales.values()) == {PICTURE}


def test_channel_of_tiny_weights_has_a_bias_that_fits() -> None:
    weight = np.full((2, 1, 1, 1), 1e-12, np.float32)
    bias = np.array([5.0, -5.0], np.float32)

    scale_O = weight_scales(weight, bias, source=0.01, output=0.05)

    assert np.all(np.abs(bias / (0.01 * scale_O)) < 2**31)


def test_channel_without_weights_has_a_scale_that_kernels_can_hold() -> None:
    (scale,) = weight_scales(np.zeros((1, 1, 1, 1), np.float32), np.zeros(1, np.float32), source=0.01, output=1e-9)

    assert 2**-32 < 0.01 * scale / 1e-9 < 256


def test_ranges_of_pictures_are_the_same_however_they_are_divided() -> None:
    graph = graph_of(network_of(Maps((lambda held, x: held[0](x).sigmoid(), [nn.Conv2d(3, 4, 3)]))))
    images_BCHW = pictures(count=6)

    together = extremes_of(graph, images_BCHW)
    apart = [extremes_of(graph, each) for each in torch.split(images_BCHW, 2)]

    for name, (low, high) in together.items():
        assert low == pytest.approx(min(each[name][0] for each in apart))
        assert high == pytest.approx(max(each[name][1] for each in apart))


def outliers() -> tuple[Graph, Tensor]:
    """Return a graph of two sums, the first of them no output, and a picture of one bright pixel."""
    graph = graph_of(network_of(Maps((lambda _, x: (100 * x + 1).sigmoid() + 100 * x, []))))
    picture_BCHW = torch.full((1, 3, 16, 16), 0.01) * torch.linspace(0, 1, 256).reshape(1, 1, 16, 16)
    picture_BCHW[..., 0, 0] = 1.0
    return graph, picture_BCHW


def test_percentile_leaves_out_what_is_rare() -> None:
    graph, picture_BCHW = outliers()
    name = next(name for name, node in graph.nodes.items() if node.inputs == (graph.picture,))

    extremes = extremes_of(graph, picture_BCHW)
    clipped = observe(graph, picture_BCHW, calibration="percentile", percentile=99)[99]

    assert extremes[name][1] > 99
    assert clipped[name][1] < 3


def test_outputs_keep_their_extremes() -> None:
    graph, picture_BCHW = outliers()

    clipped = observe(graph, picture_BCHW, calibration="percentile", percentile=99)[99]

    assert clipped[graph.outputs[0]][1] > 99


def test_numbers_that_are_not_finite_are_refused_with_their_module() -> None:
    class Huge(nn.Module):
        def forward(self, x_BCHW: Tensor) -> Tensor:
            return (1e18 * x_BCHW) ** 2

    graph = graph_of(network_of(Maps((lambda held, x: held[0](x), [Huge()]))))

    with pytest.raises(ExportError, match=r"branches\.0\.0: its numbers .* finite"):
        extremes_of(graph, 100 * pictures())
