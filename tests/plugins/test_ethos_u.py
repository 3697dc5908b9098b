import importlib.resources
import importlib.util
from collections.abc import Sequence
from configparser import ConfigParser
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from detloom.decode_spec import DecodeSpec
from detloom.errors import ExportError, RecipeError
from detloom.export.network import Exported, Network, Placement, Preflight, Verdict
from detloom_plugins.ethos_u import EthosUExporter, machines, vela
from detloom_plugins.ethos_u import exporter as exporter_module

pytest.importorskip("ethosu", reason="needs the extra ethos-u: pip install 'detloom[ethos-u]'")
pytest.importorskip("ai_edge_litert", reason="needs the extra ethos-u: pip install 'detloom[ethos-u]'")

SIDE = 32
DECODE: DecodeSpec = {
    "num_classes": 1,
    "levels": [{"stride": 4, "priors": [[8.0, 8.0]]}],
    "outputs": [
        {"name": "center", "channels": 2},
        {"name": "size", "channels": 2},
        {"name": "objectness", "channels": 1},
        {"name": "classes", "channels": 1},
    ],
    "box": {
        "form": "center-and-size",
        "center": {"activation": "sigmoid", "scale": 2.0, "shift": -0.5},
        "size": {"activation": "sigmoid", "limit": None, "scale": 2.0, "exponent": 2.0, "unit": "prior"},
    },
    "score": ["objectness", "classes"],
    "suppression": True,
}
# One of each family.
MACHINES = ("ethos-u55-256", "ethos-u65-512", "ethos-u85-256")


class Stages(nn.Module):
    """A stem, layers from 8 channels to 8, and a head of one map."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.layers = nn.Sequential(*layers)
        self.head = nn.Conv2d(8, 6, 1)

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor]:
        return (self.head(self.layers(self.stem(images_BCHW))),)


def network_of(*layers: nn.Module, side: int = SIDE, precise: tuple[str, ...] = ()) -> Network:
    return Network(Stages(layers).eval(), (side, side), DECODE, ("cell",), precise)


def checked(*layers: nn.Module, accelerator: str = "ethos-u55-256", **settings: Any) -> Preflight:
    return EthosUExporter(accelerator=accelerator, **settings).check(network_of(*layers))


def exported_to(folder: Path, network: Network, **settings: Any) -> Exported:
    return EthosUExporter(**settings).export(network, torch.rand(2, 3, SIDE, SIDE), folder)


def verdict_of(preflight: Preflight, operator: str) -> Verdict:
    (found,) = (each for each in preflight.verdicts if each.operator == operator)
    return found


@cache
def usual_preflight(accelerator: str) -> Preflight:
    layers = (nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.LeakyReLU(0.1), nn.Conv2d(8, 8, 3, 1, 1), nn.SiLU())
    return checked(*layers, nn.MaxPool2d(5, 1, 2), nn.Upsample(scale_factor=2), nn.Hardswish(), accelerator=accelerator)


@pytest.mark.parametrize("accelerator", MACHINES)
def test_usual_layers_run_on_the_npu_alone(accelerator: str) -> None:
    preflight = usual_preflight(accelerator)

    assert not preflight.at(Placement.CPU)
    assert not preflight.at(Placement.REFUSED)
    assert preflight.figures["cpu_operators"] == 0
    assert preflight.figures["npu_operators"] == len(preflight.verdicts)


@pytest.mark.parametrize("accelerator", MACHINES)
def test_cycles_of_the_operators_are_those_of_the_network(accelerator: str) -> None:
    preflight = usual_preflight(accelerator)

    assert sum(each.cycles or 0 for each in preflight.verdicts) == preflight.figures["total_cycles"] > 0


def test_figures_are_those_of_the_network_at_a_clock_of_500_megahertz() -> None:
    figures = usual_preflight("ethos-u55-256").figures

    assert figures["inference_ms"] == pytest.approx(figures["total_cycles"] / 500e3, rel=1e-6)
    # The stem, two convolutions and the head alone; pools and tables are counted too.
    assert figures["macs"] > 256 * 8 * 27 + 64 * 8 * 72 * 2 + 256 * 6 * 8
    # At least the picture in 8 bits and the stem's map; the weights.
    assert figures["sram_kib"] >= (SIDE * SIDE * 3 + 256 * 8) / 1024
    assert figures["flash_kib"] >= (8 * 27 + 8 * 72 * 2 + 6 * 8) / 1024
    assert figures["dram_kib"] == 0


def test_every_operator_is_that_of_its_module() -> None:
    preflight = usual_preflight("ethos-u55-256")

    found = {(each.module, each.operator) for each in preflight.verdicts}
    assert {
        ("stem", "CONV_2D"),
        ("layers.2", "LEAKY_RELU"),
        ("layers.4", "LOGISTIC"),
        ("layers.5", "MAX_POOL_2D"),
        ("head", "CONV_2D"),
    } <= found


@pytest.mark.parametrize("accelerator", MACHINES)
def test_an_activation_that_is_taken_along_splits_no_convolution(accelerator: str) -> None:
    preflight = usual_preflight(accelerator)

    assert [each.operator for each in preflight.at(Placement.SPLIT)] == []
    assert "stem" in {each.module for each in preflight.at(Placement.NPU)}


def test_a_concatenation_is_split_into_copies_of_its_inputs() -> None:
    class Twice(nn.Module):
        def forward(self, map_BCHW: Tensor) -> Tensor:
            return torch.cat((map_BCHW, map_BCHW), 1)

    (verdict,) = checked(Twice(), nn.Conv2d(16, 8, 1)).at(Placement.SPLIT)

    assert (verdict.module, verdict.operator, verdict.reason) == ("layers.0", "CONCATENATION", "as 2 MemoryCopy")


def test_enlarging_threefold_falls_back_by_name_with_module_reason_and_remedy() -> None:
    preflight = checked(nn.Upsample(scale_factor=3))

    (verdict,) = preflight.at(Placement.CPU)
    assert (verdict.module, verdict.operator, verdict.cycles) == ("layers.0", "RESIZE_NEAREST_NEIGHBOR", None)
    assert "scale-factor=3" in verdict.reason
    assert "2x/4x/8x" in verdict.reason
    assert "scale both sides by 2, 4 or 8" in verdict.remedy
    assert preflight.figures["cpu_operators"] == 1


def test_a_newer_npu_enlarges_threefold() -> None:
    assert not checked(nn.Upsample(scale_factor=3), accelerator="ethos-u85-256").at(Placement.CPU)


@pytest.mark.parametrize(("layer", "remedy"), [(nn.Mish(), "silu"), (nn.Upsample(scale_factor=1.5), "whole multiples")])
def test_what_no_file_can_hold_is_refused_with_its_module(layer: nn.Module, remedy: str) -> None:
    (verdict,) = checked(nn.ReLU(), layer).at(Placement.REFUSED)

    assert verdict.module == "layers.1"
    assert remedy in verdict.remedy


def test_modules_kept_in_float32_are_said_to_run_on_the_processor() -> None:
    network = network_of(nn.Conv2d(8, 8, 3, 1, 1), precise=("layers.0",))

    preflight = EthosUExporter().check(network)

    convolution = next(each for each in preflight.at(Placement.CPU) if each.operator == "CONV_2D")
    assert convolution.module == "layers.0"
    assert "float32" in convolution.remedy


def test_a_stride_of_four_is_advised_against_as_it_takes_an_operator_for_each_position() -> None:
    preflight = checked(nn.Conv2d(8, 8, 4, 4))

    (verdict,) = (each for each in preflight.at(Placement.SPLIT) if each.module == "layers.0")
    assert verdict.reason == "as 16 Conv2D"
    assert "strides of 1 to 3" in verdict.remedy


def test_a_large_pool_is_advised_to_be_a_cascade() -> None:
    preflight = checked(nn.MaxPool2d(9, 1, 4))

    assert "spp-cascade" in verdict_of(preflight, "MAX_POOL_2D").remedy


def test_a_fallback_fails_the_export_by_name_and_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"layers\.0: RESIZE_NEAREST_NEIGHBOR: .*scale-factor=3") as caught:
        exported_to(tmp_path, network_of(nn.Upsample(scale_factor=3)))

    assert "1 of 4 operators" in str(caught.value)
    assert str(caught.value).endswith("\n  or accept it: --set allow_cpu=true")
    assert not list(tmp_path.iterdir())


def test_what_falls_back_for_one_reason_has_its_remedy_once(tmp_path: Path) -> None:
    with pytest.raises(ExportError) as caught:
        exported_to(tmp_path, network_of(nn.ReLU(), precise=("stem", "head")))

    assert str(caught.value).count("change: ") == 1
    assert "CONV_2D" in str(caught.value)


def test_a_fallback_may_be_allowed(tmp_path: Path) -> None:
    exported = exported_to(tmp_path, network_of(nn.Upsample(scale_factor=3)), allow_cpu=True)

    assert exported.preflight is not None
    assert len(exported.preflight.at(Placement.CPU)) == 1


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Exported]:
    folder = tmp_path_factory.mktemp("export")
    layers = (nn.SiLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.LeakyReLU(0.1), nn.MaxPool2d(5, 1, 2), nn.Hardswish())
    return folder, exported_to(folder, network_of(*layers))


def test_the_compiled_file_is_one_operator_with_the_inputs_and_outputs_of_its_source(
    written: tuple[Path, Exported],
) -> None:
    folder, exported = written

    device, source = (described(folder / name) for name in exported.files[:2])
    assert exported.files == ("model_vela.tflite", "model.tflite", "model_float.tflite")
    assert device["operators"] == ["ethos-u"]
    assert len(source["operators"]) > 4
    assert device["tensors"] == source["tensors"]
    assert device["tensors"][1] == [
        (each["name"], each["shape"], np.float32(each["scale"] or 0), each["zero_point"]) for each in exported.tensors
    ]


def test_the_simulator_equals_litert_for_microcontrollers_to_the_bit(written: tuple[Path, Exported]) -> None:
    runtime = pytest.importorskip("tflite_micro", reason="needs tflite-micro, of the extra test").runtime
    folder, exported = written
    image_BCHW = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)).numpy()
    (tensor,) = exported.tensors
    assert tensor["scale"] is not None

    (simulated_BCHW,) = EthosUExporter().runners(exported, folder)["simulator"](image_BCHW)

    micro = runtime.Interpreter.from_file(str(folder / "model.tflite"), arena_size=1 << 20)
    micro.set_input(np.clip(np.round(image_BCHW.transpose(0, 2, 3, 1) * 255) - 128, -128, 127).astype(np.int8), 0)
    micro.invoke()
    expected_BHWC = (micro.get_output(0).astype(np.float32) - tensor["zero_point"]) * np.float32(tensor["scale"])
    assert np.array_equal(simulated_BCHW, expected_BHWC.transpose(0, 3, 1, 2))
    assert len(np.unique(simulated_BCHW)) > 16


def test_a_network_that_exceeds_the_arena_is_refused(tmp_path: Path) -> None:
    preflight = checked(nn.ReLU(), arena_kib=2)

    (verdict,) = preflight.at(Placement.REFUSED)
    assert "KiB of SRAM, and may take 2" in verdict.reason
    assert not checked(nn.ReLU(), arena_kib=64).at(Placement.REFUSED)
    with pytest.raises(ExportError, match="KiB of SRAM, and may take 2"):
        exported_to(tmp_path, network_of(nn.ReLU()), arena_kib=2)
    assert not list(tmp_path.iterdir())


def test_a_schedule_for_size_takes_less_memory() -> None:
    network = network_of(nn.Conv2d(8, 32, 3, 1, 1), nn.Conv2d(32, 8, 3, 1, 1), side=64)

    fast = EthosUExporter(optimise="performance").check(network)
    small = EthosUExporter(optimise="size").check(network)

    assert small.figures["sram_kib"] < fast.figures["sram_kib"]


def test_a_board_of_ones_own_is_taken_from_its_file(tmp_path: Path) -> None:
    ours = vela_config()
    ours["System_Config.Board"] = dict(ours["System_Config.Ethos_U55_High_End_Embedded"]) | {"core_clock": "250e6"}
    with (tmp_path / "board.ini").open("w") as file:
        ours.write(file)

    board = checked(nn.ReLU(), system="Board", config=str(tmp_path / "board.ini"))

    assert board.figures["inference_ms"] == pytest.approx(board.figures["total_cycles"] / 250e3, rel=1e-6)
    assert "system Board" in board.source


def test_what_vela_says_of_a_failure_is_passed_on() -> None:
    # A U55's second memory is flash, which cannot hold what changes.
    with pytest.raises(ExportError, match=r"memory Dedicated_Sram\): Vela .* arena_mem_area=OffChipFlash"):
        checked(nn.ReLU(), memory="Dedicated_Sram")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"accelerator": "ethos-u55-265"}, "accelerator = 'ethos-u55-265'.*Did you mean 'ethos-u55-256'"),
        ({"system": "Ethos_U55_High_End"}, "no such system of ethos-u55-256. Did you mean 'Ethos_U55_High_End_Emb"),
        ({"system": "Ethos_U85_SYS_DRAM_Mid"}, "no such system of ethos-u55-256"),
        ({"memory": "Shared"}, "memory = 'Shared'.*Did you mean 'Shared_Sram'"),
        ({"config": "nowhere.ini"}, "nowhere.ini.*no such file"),
        ({"arena_kib": 0}, "arena_kib must be at least 1, got 0"),
    ],
)
def test_wrong_settings_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        EthosUExporter(**settings)


def test_every_target_is_an_exporter_of_its_name() -> None:
    for name, settings in EthosUExporter.targets.items():
        assert EthosUExporter(**settings).machine.accelerator == name


def test_the_names_are_those_of_the_installed_compiler() -> None:
    from ethosu.vela.architecture_features import Accelerator

    sections = vela_config().sections()

    assert list(machines.ACCELERATORS) == list(Accelerator.member_list())
    assert [f"System_Config.{name}" for names in machines.SYSTEMS.values() for name in names] == sections[:11]
    assert [f"Memory_Mode.{name}" for name in machines.MEMORY_MODES] == sections[11:]


def test_a_missing_package_is_one_line_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    assert EthosUExporter.missing() is None

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ethosu" else find(name))

    said = "the exporter 'ethos-u' needs ethos-u-vela, which this Python lacks: pip install 'detloom[ethos-u]'"
    assert EthosUExporter.missing() == said


def test_a_compiler_of_another_version_is_one_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter_module, "vela_version", lambda: "5.10.0")

    assert EthosUExporter.missing() == (
        "the exporter 'ethos-u' needs ethos-u-vela 5.1 or 5.2, and 5.10.0 is installed: pip install 'detloom[ethos-u]'"
    )


def test_an_export_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="needs pictures"):
        EthosUExporter().export(network_of(), None, tmp_path)


def test_reasons_are_read_in_one_line_and_as_lists() -> None:
    said = """
Warning (supported operators) operator: ADD, ofm: 'a:2'
Reason: Found this
Would take that
Warning (supported operators) operator: EXP, ofm: 'b'
Reason: Unsupported opType
Warning (supported operators) operator: POOL, ofm: 'c'
Reason: Found those
IF so:
  - the first
  - or the second

Network summary for model
"""

    assert vela._complaints(said) == {
        "a:2": "Found this; Would take that",
        "b": "Unsupported opType",
        "c": "Found those; or the second",
    }


def vela_config() -> ConfigParser:
    config = ConfigParser()
    config.optionxform = str  # type: ignore[method-assign,assignment] # names are told apart by case
    config.read_string((importlib.resources.files("ethosu") / "config_files/Arm/vela.ini").read_text())
    return config


def described(file: Path) -> dict[str, Any]:
    """Return the operators of a LiteRT file, and its inputs and outputs."""
    from ai_edge_litert import schema_py_generated as schema

    model: Any = schema.ModelT.InitFromObj(schema.Model.GetRootAs(file.read_bytes(), 0))
    (graph,) = model.subgraphs

    def tensor(index: int) -> tuple[str, list[int], np.float32, int]:
        found = graph.tensors[index]
        (scale,), (zero_point,) = found.quantization.scale, found.quantization.zeroPoint
        return found.name.decode(), found.shape.tolist(), scale, int(zero_point)

    names = [model.operatorCodes[each.opcodeIndex] for each in graph.operators]
    return {
        "operators": [(code.customCode or b"").decode() or code.builtinCode for code in names],
        "tensors": [[tensor(index) for index in indices] for indices in (graph.inputs, graph.outputs)],
    }
