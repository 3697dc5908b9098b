"""From modules to graphs: what counts as a layer, where flows meet, what autograd does not follow."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from block_cases import one_map
from torch import Tensor, nn
from torch.nn import functional

from detloom.assembly import assemble
from detloom.errors import RecipeError
from detloom.paths.analysis import analyse
from detloom.paths.graph import PathGraph
from detloom.paths.meetings import meetings
from detloom.paths.trace import trace, trace_detector
from detloom.shapes import shapes_only


class Written(nn.Module):
    """A forward pass that is written in a test, with three layers at hand."""

    def __init__(self, forward: Callable[["Written", Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.scale = nn.Parameter(torch.ones(1, 4, 1, 1))
        self.written = forward

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.written(self, x_BCHW)


def traced(forward: Callable[[Written, Tensor], Tensor]) -> PathGraph:
    return trace(Written(forward), (8, 8), one_map)


def layers(graph: PathGraph) -> list[str]:
    return [node.name for _, node in graph.layers()]


def structures(graph: PathGraph) -> list[str]:
    return [each.structure for each in meetings(graph)]


def test_learned_scales_norms_and_activations_are_no_layers() -> None:
    graph = traced(lambda net, x: functional.silu(net.norm(net.first(x) * net.scale)) + net.scale)

    assert layers(graph) == ["first"]
    assert structures(graph) == []


def test_weights_that_are_computed_belong_to_their_layer() -> None:
    def standardised(net: Written, x: Tensor) -> Tensor:
        weight = (net.second.weight - 0.5) * net.scale
        return functional.conv2d(net.first(x), weight.flatten().view(4, 4, 1, 1), net.second.bias)

    graph = traced(standardised)

    assert layers(graph) == ["first", "second"]
    assert structures(graph) == []


def test_layers_of_several_operations_are_one() -> None:
    graph = trace(
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.Flatten(2), nn.Linear(64, 5), nn.Linear(5, 2, bias=False)), (8, 8), one_map
    )

    assert layers(graph) == ["0", "2", "3"]


def test_product_with_a_learned_bias_is_no_layer() -> None:
    def attention(net: Written, x: Tensor) -> Tensor:
        value = net.first(x)
        query, key = value.flatten(2), net.second(value).flatten(2)
        return torch.baddbmm(net.scale.view(1, 4, 1), query, key.transpose(1, 2))

    graph = traced(attention)

    assert layers(graph) == ["first", "second"]
    assert [node.form for node in graph.nodes][-1] == "product"


def test_flow_that_a_product_is_added_to_is_met_by_it() -> None:
    def added(net: Written, x: Tensor) -> Tensor:
        flow = net.first(x)[0, :, 0]
        return torch.addmm(flow, net.second.weight[:, :, 0, 0], flow) + torch.addmm(flow, flow[:, :4], flow)

    graph = traced(added)

    # The layer, its residual, the product of two flows, what that is added to, and the sum of both.
    assert [node.form for node in graph.nodes] == ["picture", "layer", "layer", "addition"]
    assert layers(graph) == ["first", "second"]
    assert structures(graph)[0] == "residual"


def test_product_of_constants_that_is_added_to_a_flow_is_passed_by() -> None:
    def shifted(net: Written, x: Tensor) -> Tensor:
        flow = net.first(x)[0, :, 0]
        return torch.addmm(flow, torch.ones(4, 4, device=x.device), torch.ones(4, 8, device=x.device))

    graph = traced(shifted)

    assert [node.form for node in graph.nodes] == ["picture", "layer"]


def test_activation_in_place_and_addition_in_place_are_as_those_beside() -> None:
    def beside(net: Written, x: Tensor) -> Tensor:
        kept = functional.relu(net.first(x))
        made: Tensor = kept + net.second(kept)
        return made

    def in_place(net: Written, x: Tensor) -> Tensor:
        kept = functional.relu_(net.first(x))
        made: Tensor = net.second(kept)
        made += kept
        return made

    graphs = [traced(beside), traced(in_place)]

    assert analyse(graphs[0]) == analyse(graphs[1])
    assert [structures(graph) for graph in graphs] == [["residual"], ["residual"]]


def test_input_may_be_changed_in_place() -> None:
    assert layers(traced(lambda net, x: net.first(x.sub_(0.5)))) == ["first"]


def test_layer_that_is_used_twice_is_one_layer_with_two_uses() -> None:
    graph = traced(lambda net, x: net.second(net.second(net.first(x))))

    assert [(layer.name, layer.uses) for layer in analyse(graph).layers] == [("first", 1), ("second", 2)]


def test_weights_that_two_modules_share_are_one_layer() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.Conv2d(3, 3, 1, bias=False))
    model[1].weight = model[0].weight

    graph = trace(model, (8, 8), one_map)

    assert [(layer.name, layer.uses) for layer in analyse(graph).layers] == [("0", 2)]
    assert graph.unreached == ()


def test_parametrised_layer_has_the_name_of_its_module() -> None:
    graph = trace(nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 1))), (8, 8), one_map)

    assert layers(graph) == ["0"]
    assert graph.unreached == ()


def test_nothing_behind_a_detach_is_reached() -> None:
    graph = traced(lambda net, x: net.third(net.second(net.first(x)).detach() + net.first(x)))

    assert layers(graph) == ["first", "third"]
    assert graph.unreached == ("second",)


def test_frozen_layers_hand_gradients_on() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)).requires_grad_(requires_grad=False)

    graph = trace(model, (8, 8), one_map)

    assert [layer.total.shortest for layer in analyse(graph).layers] == [2, 1]
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_model_is_left_as_it_was() -> None:
    model = Written(lambda net, x: net.first(x))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    trace(model, (8, 8), one_map)

    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_gate_is_told_from_an_activation() -> None:
    def gated(net: Written, x: Tensor) -> Tensor:
        kept: Tensor = net.first(x)
        gate: Tensor = net.second(kept)
        return kept * gate.sigmoid()

    assert structures(traced(gated)) == ["gate"]
    # x * sigmoid(x) is one function of one flow.
    assert structures(traced(lambda net, x: net.first(x) * net.first(x).sigmoid())) == ["product of separate flows"]
    assert structures(traced(lambda net, x: (kept := net.first(x)) * kept.sigmoid())) == []


def test_stride_of_a_layer_is_that_of_its_map() -> None:
    graph = trace(nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.MaxPool2d(2), nn.Conv2d(4, 4, 1)), (16, 16), one_map)

    assert [node.stride for _, node in graph.layers()] == [2, 4]


def test_results_are_called_by_their_places_where_nobody_names_them() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.conv(x), self.conv(x).relu()

    assert [output.name for output in trace(Pair(), (8, 8)).outputs] == ["output 0", "output 1"]


def test_results_that_are_no_tensors_ask_for_names() -> None:
    class Table(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"x": x}

    with pytest.raises(RecipeError, match=r"returns a dict, where .* say with `named`"):
        trace(Table(), (8, 8))


def test_code_of_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[3] / "docs" / "gradient-paths.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)

    exec("\n".join(blocks), {"__name__": "page"})  # noqa: S102 - what the page says

    *layers, steps, met = capsys.readouterr().out.splitlines()
    assert layers[0].startswith("backbone.stem.0.conv 11 43 ")
    assert steps == "[('first', (1, 2)), ('second', (1,))]"
    assert met == "[('residual', (1, 1))]"


def test_forward_that_looks_at_values_is_refused_with_a_reason() -> None:
    with pytest.raises(RecipeError, match="Written: the forward pass cannot run on shapes alone"):
        traced(lambda net, x: net.first(x) if x.sum().item() else x)


def test_results_that_no_gradient_leads_from_are_refused() -> None:
    with pytest.raises(RecipeError, match="no gradient comes from its results to the pictures"):
        traced(lambda net, x: net.first(x).detach())


def test_folding_norms_changes_no_path() -> None:
    with shapes_only():
        detector = assemble("yolov7-tiny").train()
        folded = detector.fuse()

    trained, deployed = (analyse(trace_detector(model, (128, 128))) for model in (detector, folded))

    assert [layer.total for layer in trained.layers] == [layer.total for layer in deployed.layers]
    assert trained.outputs == deployed.outputs == ("lead 8", "lead 16", "lead 32")


def test_eight_blocks_of_a_timm_resnet18_are_residuals_or_sums_with_a_projection() -> None:
    with shapes_only():
        detector = assemble("yolov7-tiny", {"backbone.use": "timm", "backbone.model": "resnet18"}).train()

    graph = trace_detector(detector, (128, 128))

    backbone = [each for each in meetings(graph) if each.name.startswith("backbone")]
    assert sorted(each.structure for each in backbone) == ["residual"] * 5 + ["sum"] * 3
    assert {each.around for each in backbone if each.around} == {(2, 2)}


def test_auxiliary_maps_are_outputs_while_training() -> None:
    with shapes_only():
        detector = assemble("yolov7-tiny", {"neck.auxiliary": [8, 16, 32]}).train()

    graph = trace_detector(detector, (128, 128))

    assert [output.name for output in graph.outputs] == [
        *("lead 8", "lead 16", "lead 32"),
        *("auxiliary 8", "auxiliary 16", "auxiliary 32"),
    ]
