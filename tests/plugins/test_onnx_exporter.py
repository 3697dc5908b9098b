"""The network as an ONNX file, and what goes wrong on the way to one."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_network import SIDE, pictures, tiny_network
from torch import Tensor, nn
from torch.nn import functional

from detloom.errors import ExportError, RecipeError
from detloom.export.network import Network
from detloom_plugins import onnx_graph
from detloom_plugins.equal_maps import demand_equality, maps_of_module
from detloom_plugins.onnx_exporter import OnnxExporter
from detloom_plugins.onnx_graph import module_of, onnx_model

onnx = pytest.importorskip("onnx", reason="needs the extra 'onnx'")


class Bessel(nn.Module):
    def forward(self, x_BCHW: Tensor) -> Tensor:
        return torch.special.bessel_j0(x_BCHW)


def one_map(*layers: nn.Module, side: int = SIDE) -> Network:
    """Return a network of layers in a row, with one map."""

    class Row(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(layers)

        def forward(self, x_BCHW: Tensor) -> tuple[Tensor]:
            for layer in self.layers:
                x_BCHW = layer(x_BCHW)
            return (x_BCHW,)

    network = tiny_network()
    return replace(
        network,
        module=Row().eval(),
        image_size=(side, side),
        decode={**network.decode, "levels": network.decode["levels"][:1]},
    )


@pytest.mark.parametrize("opset", [12, 18])
def test_one_file_has_named_outputs_that_are_torchs(opset: int, tmp_path: Path) -> None:
    network = tiny_network()
    exporter = OnnxExporter(opset=opset)

    exported = exporter.export(network, None, tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == list(exported.files) == ["model.onnx"]
    model = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    assert [each.name for each in model.graph.output] == network.map_names == ["stride8", "stride16"]
    assert not any(each.external_data for each in model.graph.initializer)
    assert [each.version for each in model.opset_import] == [opset]
    found = exporter.runners(exported, tmp_path)["float"](pictures(2).numpy())
    for mine, its, tensor in zip(found, maps_of_module(network, pictures(2)), exported.tensors, strict=True):
        np.testing.assert_allclose(mine, its, rtol=1e-5, atol=1e-5)
        assert tensor["shape"] == [1, *its.shape[1:]]
    assert "largest difference from torch" in exported.notes[0]


@pytest.mark.parametrize("opset", [12, 18])
def test_nodes_are_called_after_modules_and_nothing_after_this_machine(opset: int) -> None:
    network = tiny_network()

    model = onnx_model(network, numbers="float32", opset=opset, dynamic_batch=False)

    convolutions = sorted(module_of(node) for node in model.graph.node if node.op_type == "Conv")
    assert convolutions == ["backbone.0.conv", "backbone.1.conv", "down.0.conv", "head.0", "head.1"]
    assert len({node.name for node in model.graph.node}) == len(model.graph.node)
    assert b"tiny_network.py" not in model.SerializeToString()


def test_a_file_is_the_same_each_time(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        OnnxExporter(opset=18).export(tiny_network(), None, tmp_path / name)

    assert (tmp_path / "a/model.onnx").read_bytes() == (tmp_path / "b/model.onnx").read_bytes()


@pytest.mark.parametrize("opset", [12, 18])
def test_a_dynamic_batch_is_run_at_once(opset: int, tmp_path: Path) -> None:
    network = tiny_network()
    exporter = OnnxExporter(opset=opset, dynamic_batch=True)

    exported = exporter.export(network, None, tmp_path)

    shape = onnx.load(tmp_path / "model.onnx").graph.input[0].type.tensor_type.shape
    assert [each.dim_value for each in shape.dim] == [0, 3, SIDE, SIDE]
    found = exporter.runners(exported, tmp_path)["float"](pictures(3).numpy())
    for mine, its in zip(found, maps_of_module(network, pictures(3)), strict=True):
        np.testing.assert_allclose(mine, its, rtol=1e-5, atol=1e-5)


def test_no_file_has_another_opset_than_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    # The newer exporter, asked for 13, leaves the file at 18 and says nothing.
    monkeypatch.setattr(onnx_graph, "FIRST_NATIVE_OPSET", 11)

    try:
        model = onnx_model(tiny_network(), numbers="float32", opset=13, dynamic_batch=False)
    except ExportError as error:
        assert "opset 13 was asked for, and torch's exporter left the file at 18" in str(error)  # noqa: PT017 - or it is at 13
    else:
        assert [each.version for each in model.opset_import] == [13]


@pytest.mark.parametrize("opset", [10, 24])
def test_an_opset_that_nothing_writes_is_refused(opset: int) -> None:
    with pytest.raises(RecipeError, match=f"opset must be from 11 to 23, got {opset}"):
        OnnxExporter(opset=opset)


def test_float16_halves_the_file_and_says_so_to_a_host(tmp_path: Path) -> None:
    network = tiny_network()
    exporter = OnnxExporter(numbers="float16", opset=12)

    exported = exporter.export(network, None, tmp_path)

    assert {exported.input["dtype"], *(each["dtype"] for each in exported.tensors)} == {"float16"}
    weights = onnx.load(tmp_path / "model.onnx").graph.initializer
    assert sum(each.data_type == onnx.TensorProto.FLOAT16 for each in weights) == 10
    found = exporter.runners(exported, tmp_path)["float"](pictures(1).numpy())
    for mine, its in zip(found, maps_of_module(network, pictures(1)), strict=True):
        # Eleven bits of fraction, over five convolutions.
        np.testing.assert_allclose(mine, its, atol=2**-9 * np.abs(its).max())


def test_numbers_that_float16_cannot_hold_are_refused_by_module(tmp_path: Path) -> None:
    network = tiny_network()
    assert isinstance(network.module.get_parameter("backbone.1.conv.weight"), nn.Parameter)
    with torch.no_grad():
        network.module.get_parameter("backbone.1.conv.weight").mul_(1e6)
        network.module.get_parameter("down.0.conv.weight").mul_(1e-6)

    with pytest.raises(ExportError, match=r"backbone\.1\.conv: float16 ends at 65504, and this reaches .*e\+0"):
        OnnxExporter(numbers="float16").export(network, None, tmp_path)

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("opset", [12, 18])
def test_an_operator_without_conversion_is_named_with_its_modules(opset: int, tmp_path: Path) -> None:
    network = one_map(nn.Conv2d(3, 4, 3), Bessel(), nn.Sequential(nn.ReLU(), Bessel()))
    exporter = OnnxExporter(opset=opset)

    preflight = exporter.check(network)
    with pytest.raises(ExportError) as caught:
        exporter.export(network, None, tmp_path)

    assert [(each.module, each.placement.value) for each in preflight.verdicts] == [
        ("layers.1", "refused"),
        ("layers.2.1", "refused"),
    ]
    assert "no chip" in preflight.source
    assert f"layers.2.1: {preflight.verdicts[0].operator}: torch.onnx, opset {opset}, has no" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_several_operators_without_conversion_are_found_in_one_go() -> None:
    class Both(nn.Module):
        def forward(self, x_BCHW: Tensor) -> Tensor:
            return torch.special.i0e(x_BCHW)

    preflight = OnnxExporter().check(one_map(Bessel(), Both()))

    assert [each.module for each in preflight.verdicts] == ["layers.0", "layers.1"]


def test_a_network_that_converts_has_nothing_refused() -> None:
    assert OnnxExporter(opset=12).check(tiny_network()).verdicts == ()


def test_nearest_enlargement_by_one_and_a_half_is_that_of_torch(tmp_path: Path) -> None:
    class Enlarged(nn.Module):
        def forward(self, x_BCHW: Tensor) -> Tensor:
            return functional.interpolate(x_BCHW, size=(60, 60), mode="nearest")

    network = one_map(Enlarged(), side=40)
    exporter = OnnxExporter(opset=12)

    exported = exporter.export(network, None, tmp_path)

    image_BCHW = torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(3))
    (found,) = exporter.runners(exported, tmp_path)["float"](image_BCHW.numpy())
    np.testing.assert_array_equal(found, maps_of_module(network, image_BCHW)[0])


@pytest.mark.parametrize(
    ("found", "complaint"),
    [
        (np.full((1, 2), 1.1), "the output 'x' differs from the network's map by 0.1"),
        (np.full((1, 2), np.nan), "the output 'x' differs from the network's map by nan"),
        (np.ones((1, 3)), r"the output 'x' has the shape \[1, 3\], the network's map \[1, 2\]"),
    ],
)
def test_maps_that_are_not_the_networks_are_refused_by_name(found: np.ndarray, complaint: str) -> None:  # type: ignore[type-arg] # of any type
    with pytest.raises(ExportError, match=complaint):
        demand_equality([found], [np.ones((1, 2), np.float32)], ["x"], tolerance=1e-3, where="file")


def test_a_missing_package_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxslim" else find(name))

    assert OnnxExporter.missing() == (
        "the exporter 'onnx' needs onnxslim, which this Python lacks: pip install 'detloom[onnx]'"
    )
