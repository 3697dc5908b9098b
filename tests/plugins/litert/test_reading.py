"""What is read off torch's graph, and what is refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from litert_cases import Maps, network_of, pictures
from torch import Tensor, nn
from torch.nn import functional

from detloom.errors import ExportError
from detloom_plugins.litert import graph_of, reading
from detloom_plugins.litert.graph import Graph
from detloom_plugins.litert.meanings import MEANINGS
from detloom_plugins.litert.pointwise import LeakyRelu


class Stem(nn.Module):
    """A convolution with a module, or a function, after it."""

    def __init__(self, after: nn.Module | Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.after = after

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        return (self.after(self.conv(images_BCHW)),)


def operations(graph: Graph) -> list[str]:
    return [type(node.operation).__name__ for node in graph.nodes.values()]


def refusal(after: nn.Module | Callable[[Tensor], Tensor]) -> str:
    with pytest.raises(ExportError) as caught:
        graph_of(network_of(Stem(after)))
    return str(caught.value)


def test_unknown_operator_is_named_with_its_module_and_a_remedy() -> None:
    message = refusal(nn.Sequential(nn.Mish()))

    assert message.startswith("after.0: aten.mish.default: ")
    assert message.endswith("use the activation silu, leaky-relu or relu")


def test_every_unknown_operator_is_named_at_once() -> None:
    message = refusal(nn.Sequential(nn.Mish(), nn.Conv2d(4, 4, 1), nn.Softplus()))

    assert "2 operators" in message
    assert "after.0: aten.mish" in message
    assert "after.2: aten.softplus" in message


def test_enlarging_by_no_whole_factor_is_refused_with_its_sizes() -> None:
    message = refusal(nn.Sequential(nn.Upsample(scale_factor=1.5)))

    assert message.startswith("after.0: aten.upsample_nearest2d.vec: it enlarges 16 x 16 to 24 x 24")


@pytest.mark.parametrize(
    ("after", "why"),
    [
        (nn.MaxPool2d(3, 1, 1, dilation=2), "dilation"),
        (nn.AvgPool2d(3, 2, 1, count_include_pad=False), "leaves out what this padding adds"),
        (nn.AvgPool2d(2, divisor_override=3), "divisor_override"),
        (nn.AdaptiveAvgPool2d(5), "no multiple"),
        (nn.ConvTranspose2d(4, 4, 3, groups=2), "neither groups nor dilation"),
        (nn.ConvTranspose2d(4, 4, 4, 3, 0, 1), "output padding"),
        (nn.GELU(approximate="tanh"), "approximation"),
        (nn.ReflectionPad2d(1), "reflect"),
        (lambda y: y.clamp(-1, 1), "clamps to (-1, 1)"),
        (lambda y: y.mean(1, keepdim=True), "mean of height and width"),
        (lambda y: y**3, "powers of 3"),
        (lambda y: 1 / (y.sigmoid() + 1), "aten.reciprocal"),
        (lambda y: y / (y.sigmoid() + 1), "divides by a map"),
        (lambda y: y + torch.arange(16.0), "not one number for each channel"),
        (lambda y: y.add(y.sigmoid(), alpha=2), "weighs its second input"),
        (lambda y: y.softmax(1), "decode"),
        (lambda y: y.argmax(1, keepdim=True).float(), "aten.argmax"),
        (lambda y: y.topk(2, 1).values, "aten.topk"),
        (lambda y: y.repeat_interleave(2, 3), "repeat"),
        (lambda y: y.permute(0, 2, 3, 1), "reorders axes"),
        (lambda y: y.flatten(2).unsqueeze(-1), "turns shape"),
        (lambda y: y.double().float(), "torch.float64"),
        (lambda y: functional.pad(y, (-1, 0)), "pads by"),
        (lambda _: torch.ones(1, 4, 16, 16), "does not depend on the picture"),
    ],
)
def test_what_has_no_equal_form_is_refused(after: Any, why: str) -> None:
    assert why in refusal(after)


def test_choice_by_the_values_of_a_map_cannot_be_traced() -> None:
    assert "torch.export cannot trace" in refusal(lambda y: y if y.sum() > 0 else -y)


def test_mistake_of_the_reading_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {**MEANINGS, "relu": lambda call: call.add(LeakyRelu(0.5), call.value("self"))}
    monkeypatch.setattr(reading, "MEANINGS", wrong)

    assert "mistake of the exporter" in refusal(nn.ReLU())


def test_what_does_nothing_leaves_nothing() -> None:
    quiet = nn.Sequential(nn.Identity(), nn.Dropout(), nn.Dropout2d())

    graph = graph_of(network_of(Stem(lambda y: quiet.eval()(y).clone().contiguous().detach().view(1, 4, 16, 16))))

    assert operations(graph) == ["Conv"]


def test_slice_of_a_join_is_the_part() -> None:
    graph = graph_of(network_of(Stem(lambda y: torch.cat([y.relu(), y.sigmoid()], 1)[:, 4:])))

    assert operations(graph) == ["Conv", "Sigmoid"]


def test_slice_across_the_parts_of_a_join_stays() -> None:
    graph = graph_of(network_of(Stem(lambda y: torch.cat([y.relu(), y.sigmoid()], 1)[:, 2:6])))

    assert operations(graph) == ["Conv", "Activation", "Sigmoid", "Concat", "Slice"]


def test_norms_and_activations_go_into_the_convolution_before() -> None:
    graph = graph_of(network_of(Stem(nn.Sequential(nn.BatchNorm2d(4), nn.ReLU6()))))

    assert operations(graph) == ["Conv"]


def test_zeros_around_a_map_go_into_the_convolution_behind() -> None:
    graph = graph_of(network_of(Stem(nn.Sequential(nn.ReLU(), nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(4, 4, 3, 2)))))

    assert operations(graph) == ["Conv", "Conv"]


def test_activation_stays_apart_where_its_input_is_read_by_others() -> None:
    graph = graph_of(network_of(Stem(lambda y: y.relu() * y)))

    assert operations(graph) == ["Conv", "Activation", "Combine"]


def test_weights_that_are_computed_from_weights_are_constants() -> None:
    gain = nn.Parameter(torch.rand(4))

    def normalised(y_BCHW: Tensor) -> Tensor:
        return functional.conv2d(y_BCHW, torch.diag(gain.square() + 1)[:, :, None, None])

    graph = graph_of(network_of(Stem(normalised)))

    assert operations(graph) == ["Conv", "Conv"]


def test_value_that_is_changed_in_place_is_read_as_changed() -> None:
    def twice(y_BCHW: Tensor) -> Tensor:
        functional.relu_(y_BCHW)
        return y_BCHW + y_BCHW.sigmoid()

    graph = graph_of(network_of(Stem(twice)))

    assert [type(node.operation).__name__ for node in graph.nodes.values()] == ["Conv", "Sigmoid", "Combine"]


def test_output_that_is_returned_twice_is_copied() -> None:
    class Twice(nn.Module):
        def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
            pooled_BCHW = functional.max_pool2d(images_BCHW, 2)
            return pooled_BCHW, pooled_BCHW

    graph = graph_of(network_of(Twice(), maps=2))

    assert len(set(graph.outputs)) == 2


def test_graph_has_the_network_s_meaning_for_any_batch() -> None:
    network = network_of(Maps((lambda held, x: held[0](x), [nn.Conv2d(3, 4, 3)])))
    images_BCHW = pictures(count=3)

    (found_BCHW,) = graph_of(network).run(images_BCHW)

    torch.testing.assert_close(found_BCHW, network.module(images_BCHW)[0])
