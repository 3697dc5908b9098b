"""The files of the exporter litert."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from litert_cases import Maps, decibels, network_of, pictures, ran
from torch import nn

from detloom.assembly import assemble
from detloom.errors import ExportError, RecipeError
from detloom.export.network import Network, Placement, RawMaps
from detloom_plugins.litert import Converted, LitertExporter, convert_to_float, convert_to_int8, graph_of

schema = pytest.importorskip(
    "ai_edge_litert.schema_py_generated", reason="LiteRT is an extra: pip install 'detloom[litert]'"
)

SIZE = (64, 64)


def two_maps(precise: tuple[str, ...] = ()) -> Network:
    """Return a network of two maps that can be told apart."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), nn.SiLU(), nn.Conv2d(4, 4, 1))
    return network_of(
        Maps((lambda held, x: held[0](x), [body]), (lambda held, x: held[0](x) - 5, [nn.Conv2d(3, 4, 3, 2, 1)])),
        maps=2,
        precise=precise,
    )


def int8_of(network: Network) -> Converted:
    images_BCHW = pictures(network.image_size)
    return convert_to_int8(network, graph_of(network), images_BCHW, calibration="min-max", percentile=100)


def names(converted: Converted) -> list[str]:
    return [operator.name for operator in converted.operators]


@pytest.fixture(scope="module")
def tiny() -> Network:
    """Return a small YOLOv7-tiny whose norms have seen pictures, folded."""
    torch.manual_seed(0)
    narrow = {
        "backbone.stem": [[3, 2, 8], [3, 2, 8]],
        "backbone.hidden": [4, 8, 8, 8],
        "backbone.widths": [8, 16, 16, 16],
        "neck.hidden": [8, 8, 8],
        "neck.widths": [8, 8, 8],
        "neck.outputs": [16, 16, 16],
    }
    detector = assemble("yolov7-tiny", narrow, num_classes=2).train()
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean of what they see
    with torch.no_grad():
        detector(pictures(SIZE, count=8))
    folded = detector.eval().fuse()
    return Network(RawMaps(folded).eval(), SIZE, folded.head.decode_spec(), folded.names)


def test_yolov7_tiny_is_8_bits_throughout(tiny: Network) -> None:
    converted = int8_of(tiny)

    assert set(names(converted)) == {
        "CONV_2D",
        "LEAKY_RELU",
        "CONCATENATION",
        "MAX_POOL_2D",
        "PAD",
        "RESIZE_NEAREST_NEIGHBOR",
    }
    assert names(converted).count("LEAKY_RELU") == sum(isinstance(each, nn.LeakyReLU) for each in tiny.module.modules())
    assert {each["dtype"] for each in (converted.input, *converted.tensors)} == {"int8"}


def test_yolov7_tiny_keeps_its_maps(tiny: Network) -> None:
    with torch.no_grad():
        wanted = [each.numpy() for each in tiny.module(pictures(SIZE))]

    for one, other in zip(wanted, ran(convert_to_float(tiny, graph_of(tiny)), pictures(SIZE)), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-4)
    for one, other in zip(wanted, ran(int8_of(tiny), pictures(SIZE), reference=True), strict=True):
        # Some forty layers deep, of a network that has learned nothing and damps no noise.
        assert decibels(one, other) > 12


def test_tensors_and_operators_are_named_after_modules(tiny: Network) -> None:
    converted = int8_of(tiny)
    modules = {path for path, _ in tiny.module.named_modules()}

    assert {operator.module for operator in converted.operators} <= modules
    assert converted.operators[0].output == "backbone.stem.0.conv:pad"
    assert [tensor["name"] for tensor in converted.tensors] == tiny.map_names


def test_weights_lie_inside_the_flatbuffer() -> None:
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(int8_of(two_maps()).data, 0))

    assert all(buffer.offset == 0 == buffer.size for buffer in model.buffers)
    assert sum(buffer.data is not None for buffer in model.buffers) >= 6  # weights and biases of three convolutions


def test_same_network_gives_the_same_bytes() -> None:
    assert int8_of(two_maps()).data == int8_of(two_maps()).data


def test_maps_come_in_the_network_s_order(tmp_path: Path) -> None:
    network = two_maps()
    made = LitertExporter()
    runners = made.runners(made.export(network, pictures(), tmp_path), tmp_path)
    with torch.no_grad():
        wanted = [each.numpy() for each in network.module(pictures())]

    assert list(runners) == ["float", "int8", "simulator"]
    for run in runners.values():
        found = run(pictures().numpy())
        assert all(decibels(one, other) > 30 for one, other in zip(wanted, found, strict=True))


def test_float32_is_one_file_that_computes_what_torch_does(tmp_path: Path) -> None:
    network = two_maps()
    made = LitertExporter(numbers="float32")
    exported = made.export(network, None, tmp_path)
    ((stage, run),) = made.runners(exported, tmp_path).items()

    assert stage == "float"
    assert exported.input["scale"] is None
    assert [each.name for each in tmp_path.iterdir()] == list(exported.files)
    np.testing.assert_allclose(
        run(pictures().numpy())[1], network.module(pictures())[1].detach().numpy(), rtol=1e-5, atol=1e-5
    )


def test_precise_module_computes_in_float32_between_conversions() -> None:
    path = "branches.0.0.0"
    converted = int8_of(two_maps(precise=(path,)))
    inside = [operator.name for operator in converted.operators if operator.module == path]

    assert inside == ["DEQUANTIZE", "CONV_2D"]
    assert names(converted).count("QUANTIZE") == 1
    assert decibels(two_maps().module(pictures())[0].detach().numpy(), ran(converted, pictures())[0]) > 36


def test_precise_output_is_float32() -> None:
    converted = int8_of(two_maps(precise=("branches.1",)))

    assert [tensor["dtype"] for tensor in converted.tensors] == ["int8", "float32"]


def test_precise_module_that_is_none_is_refused() -> None:
    with pytest.raises(ExportError, match=r"'branches.7'.*branches.0.0.0"):
        int8_of(two_maps(precise=("branches.7",)))


def test_report_says_which_modules_are_precise(tmp_path: Path) -> None:
    exported = LitertExporter().export(two_maps(precise=("branches.1",)), pictures(), tmp_path)

    assert exported.notes[1:] == ("branches.1 computes in float32, between conversions",)


def test_ranges_that_are_nearest_to_real_numbers_are_kept() -> None:
    network, images_BCHW = two_maps(), pictures(count=16)
    graph = graph_of(network)
    made = {
        percentile: convert_to_int8(network, graph, images_BCHW, calibration="percentile", percentile=percentile)
        for percentile in (100, 99.999)
    }

    chosen = convert_to_int8(network, graph, images_BCHW, calibration="auto", percentile=50.1)

    with torch.no_grad():
        wanted = [each.numpy() for each in network.module(images_BCHW[::2])]
    worst = {percentile: min(map(decibels, wanted, ran(each, images_BCHW[::2]))) for percentile, each in made.items()}
    assert chosen.data == made[max(worst, key=lambda percentile: worst[percentile])].data


def test_note_says_what_other_ranges_would_give() -> None:
    network = two_maps()

    note = convert_to_int8(network, graph_of(network), pictures(), calibration="auto", percentile=50.1).note

    assert "on 4 pictures" in note
    assert note.count("would give") == 1


def test_check_names_what_cannot_be_written_and_writes_nothing() -> None:
    network = network_of(Maps((lambda held, x: held[0](x), [nn.Mish()]), (lambda _, x: x, [])), maps=2)

    (verdict,) = LitertExporter().check(network).verdicts

    assert (verdict.module, verdict.operator) == ("branches.0.0", "aten.mish.default")
    assert verdict.placement is Placement.REFUSED
    assert verdict.remedy


def test_check_has_no_verdict_on_what_can_be_written() -> None:
    assert LitertExporter().check(two_maps()).verdicts == ()


@pytest.mark.parametrize("given", [None, torch.empty(0, 3, 16, 16)])
def test_8_bits_without_pictures_are_refused(given: torch.Tensor | None, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="--data"):
        LitertExporter().export(two_maps(), given, tmp_path)


@pytest.mark.parametrize("percentile", [50, 100.1])
def test_percentile_out_of_range_is_refused(percentile: float) -> None:
    with pytest.raises(RecipeError, match="percentile must be above 50"):
        LitertExporter(percentile=percentile)


def test_missing_package_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ai_edge_litert" else find(name))

    said = "the exporter 'litert' needs ai-edge-litert, which this Python lacks: pip install 'detloom[litert]'"
    assert LitertExporter.missing() == said


def test_nothing_is_missing_here() -> None:
    assert LitertExporter.missing() is None
