"""The network as an ONNX file, and what goes wrong on the way to one."""

import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny_network import SIDE, pictures, tiny_network
from torch import Tensor, nn
from torch.nn import functional

from detloom.errors import ExportError, RecipeError
from detloom.export.network import Exported, Network, Placement
from detloom_plugins import onnx_graph
from detloom_plugins.equal_maps import demand_equality, maps_of_module, rounding_of_module
from detloom_plugins.onnx_exporter import OnnxExporter
from detloom_plugins.onnx_file import OnnxRunner
from detloom_plugins.onnx_graph import module_of, onnx_model

onnx = pytest.importorskip("onnx", reason="needs the extra 'onnx'")


class Bessel(nn.Module):
    def forward(self, x_BCHW: Tensor) -> Tensor:
        out: Tensor = torch.special.bessel_j0(x_BCHW)
        return out


class ScaledBessel(nn.Module):
    def forward(self, x_BCHW: Tensor) -> Tensor:
        out: Tensor = torch.special.i0e(x_BCHW)
        return out


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


@dataclass(frozen=True)
class Written:
    """A file, and what was said of it."""

    network: Network
    exporter: OnnxExporter
    exported: Exported
    folder: Path
    model: Any


@pytest.fixture(scope="module", params=[12, 18])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Return what either of torch's exporters makes of the tiny network."""
    network, exporter = tiny_network(), OnnxExporter(opset=request.param)
    folder = tmp_path_factory.mktemp("onnx")
    exported = exporter.export(network, None, folder)
    return Written(network, exporter, exported, folder, onnx.load(folder / "model.onnx", load_external_data=False))


def test_there_is_one_file_with_its_weights_inside(written: Written) -> None:
    assert [path.name for path in written.folder.iterdir()] == list(written.exported.files) == ["model.onnx"]
    assert not any(each.external_data for each in written.model.graph.initializer)
    weights = sum(each.numel() for each in written.network.module.parameters())
    assert (written.folder / "model.onnx").stat().st_size > 4 * weights


def test_the_file_has_the_opset_and_the_outputs_that_it_says(written: Written) -> None:
    assert [each.version for each in written.model.opset_import] == [written.exporter.opset]
    assert [each.name for each in written.model.graph.output] == ["stride8", "stride16"]
    assert [each["name"] for each in written.exported.tensors] == written.network.map_names == ["stride8", "stride16"]
    assert [each["shape"] for each in written.exported.tensors] == [[1, 8, 8, 8], [1, 8, 4, 4]]


def test_outputs_are_those_of_torch(written: Written) -> None:
    found = written.exporter.runners(written.exported, written.folder)["float"](pictures(2).numpy())

    for mine, its in zip(found, maps_of_module(written.network, pictures(2)), strict=True):
        np.testing.assert_allclose(mine, its, rtol=1e-5, atol=1e-5)
    assert "largest difference from torch" in written.exported.notes[0]


def test_nodes_are_called_after_modules_and_nothing_after_this_machine(written: Written) -> None:
    nodes = written.model.graph.node

    convolutions = sorted(module_of(node) for node in nodes if node.op_type == "Conv")
    assert convolutions == ["backbone.0.conv", "backbone.1.conv", "down.0.conv", "head.0", "head.1"]
    assert len({node.name for node in nodes}) == len(nodes)
    assert b"tiny_network.py" not in (written.folder / "model.onnx").read_bytes()


def test_a_file_is_the_same_each_time(written: Written, tmp_path: Path) -> None:
    written.exporter.export(written.network, None, tmp_path)

    assert (tmp_path / "model.onnx").read_bytes() == (written.folder / "model.onnx").read_bytes()


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
    with torch.no_grad():
        network.module.get_parameter("backbone.1.conv.weight").mul_(6e4)
        network.module.get_parameter("down.0.conv.weight").mul_(1e-5)

    with pytest.raises(ExportError, match=r"backbone\.1\.conv: float16 ends at 65504, and this reaches "):
        OnnxExporter(numbers="float16").export(network, None, tmp_path)

    assert list(tmp_path.iterdir()) == []


def test_an_operator_without_conversion_is_told_beforehand_with_its_modules() -> None:
    network = one_map(nn.Conv2d(3, 4, 3), Bessel(), nn.Sequential(nn.ReLU(), Bessel()))

    preflight = OnnxExporter(opset=12).check(network)

    assert [(each.module, each.operator, each.placement) for each in preflight.verdicts] == [
        ("layers.1", "aten::special_bessel_j0", Placement.REFUSED),
        ("layers.2.1", "aten::special_bessel_j0", Placement.REFUSED),
    ]
    assert "no chip" in preflight.source


@pytest.mark.parametrize("opset", [12, pytest.param(18, marks=pytest.mark.slow)])
def test_all_operators_without_conversion_are_named_and_nothing_is_written(opset: int, tmp_path: Path) -> None:
    network = one_map(nn.Conv2d(3, 4, 3), Bessel(), nn.Sequential(nn.ReLU(), ScaledBessel()))

    with pytest.raises(ExportError) as caught:
        OnnxExporter(opset=opset).export(network, None, tmp_path)

    first, *places = str(caught.value).splitlines()
    assert first == "the network has operators that cannot be exported; nothing was written"
    for path, operator, said in zip(("layers.1", "layers.2.1"), ("bessel_j0", "i0e"), places, strict=True):
        assert said.startswith(f"  {path}: ")
        assert f"{operator}" in said
        assert f"torch.onnx, opset {opset}, has no conversion for it" in said
    assert list(tmp_path.iterdir()) == []


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
def test_maps_that_are_not_the_networks_are_refused_by_name(found: NDArray[np.float64], complaint: str) -> None:
    with pytest.raises(ExportError, match=complaint):
        demand_equality(
            [found.astype(np.float32)],
            [np.ones((1, 2), np.float32)],
            ["x"],
            tolerance=1e-3,
            rounding=lambda: [0.009],
            where="file",
        )


def test_what_torchs_own_rounding_amounts_to_is_no_difference() -> None:
    found, wanted = np.full((1, 2), 1.1, np.float32), np.ones((1, 2), np.float32)

    said = demand_equality([found], [wanted], ["x"], tolerance=1e-3, rounding=lambda: [0.011], where="file")

    assert "x 0.1" in said


def test_rounding_of_a_module_is_what_float32_misses() -> None:
    class Third(torch.nn.Module):
        def forward(self, images_BCHW: torch.Tensor) -> tuple[torch.Tensor]:
            return (images_BCHW / 3,)

    network = Network(Third(), (1, 1), {}, ("object",))  # type: ignore[typeddict-item] # no host decodes it

    (found,) = rounding_of_module(network, torch.ones(1, 3, 1, 1))

    assert found == pytest.approx(abs(float(np.float32(1) / np.float32(3)) - 1 / 3))


def test_a_missing_package_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxslim" else find(name))

    assert OnnxExporter.missing() == (
        "the exporter 'onnx' needs onnxslim, which this Python lacks: pip install 'detloom[onnx]'"
    )


def test_processors_without_vnni_add_products_of_8_bits_without_overflow(written: Written) -> None:
    runner = written.exporter.runners(written.exported, written.folder)["float"]

    # Asked of onnxruntime, as processors that have VNNI show nothing.
    assert isinstance(runner, OnnxRunner)
    session = runner._session

    assert session.get_session_options().get_session_config_entry("session.x64quantprecision") == "1"
