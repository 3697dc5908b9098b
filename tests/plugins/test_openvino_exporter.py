"""The network for OpenVINO, and what it does on the quiet unless it is told."""

import importlib.util
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_network import decibels, pictures, tiny_network
from torch import Tensor, nn

from detloom.errors import ExportError
from detloom.export.network import Placement
from detloom_plugins.equal_maps import maps_of_module
from detloom_plugins.openvino_exporter import DEVICES, OpenvinoExporter
from detloom_plugins.openvino_model import OpenvinoRunner, library

needs_openvino = pytest.mark.skipif(
    OpenvinoExporter.missing() is not None, reason=f"{OpenvinoExporter.missing()} (400 MB, too much for every test run)"
)


class Bessel(nn.Module):
    def forward(self, images_BCHW: Tensor) -> tuple[Tensor]:
        return (torch.special.bessel_j0(images_BCHW),)


def test_a_missing_package_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # noqa: ARG005 - find_spec's argument

    assert OpenvinoExporter.missing() == (
        "the exporter 'openvino' needs openvino, nncf, which this Python lacks: pip install 'detloom[openvino]'"
    )


def test_devices_are_targets_with_their_settings() -> None:
    made = {name: OpenvinoExporter(**settings).device for name, settings in OpenvinoExporter.targets.items()}

    assert made == {"intel-cpu": "CPU", "intel-gpu": "GPU", "intel-npu": "NPU"}


def test_real_numbers_need_no_pictures() -> None:
    assert not OpenvinoExporter(numbers="float32").calibrates
    assert OpenvinoExporter().calibrates


def test_pictures_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="'openvino' needs pictures"):
        OpenvinoExporter().export(tiny_network(), None, tmp_path)


@needs_openvino
def test_outputs_are_those_of_torch_by_the_names_of_the_maps(tmp_path: Path) -> None:
    network = tiny_network()
    exporter = OpenvinoExporter(numbers="float32")

    exported = exporter.export(network, None, tmp_path)

    assert exported.files == ("model.xml", "model.bin")
    assert [each["name"] for each in exported.tensors] == network.map_names
    runners = exporter.runners(exported, tmp_path)
    assert list(runners) == ["float"]
    for mine, its in zip(runners["float"](pictures(2).numpy()), maps_of_module(network, pictures(2)), strict=True):
        np.testing.assert_allclose(mine, its, rtol=1e-5, atol=1e-5)


@needs_openvino
def test_weights_are_not_halved_on_the_way_to_the_disk(tmp_path: Path) -> None:
    network = tiny_network()

    OpenvinoExporter(numbers="float32").export(network, None, tmp_path)

    assert (tmp_path / "model.bin").stat().st_size > 4 * sum(each.numel() for each in network.module.parameters())


@needs_openvino
def test_float32_is_not_computed_in_bfloat16(tmp_path: Path) -> None:
    exporter = OpenvinoExporter(numbers="float32")
    exported = exporter.export(tiny_network(), None, tmp_path)

    runner = exporter.runners(exported, tmp_path)["float"]

    assert isinstance(runner, OpenvinoRunner)
    assert runner.compiled.get_property("INFERENCE_PRECISION_HINT") == library().Type.f32


@needs_openvino
@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_integers_for_each_device_are_near_to_real_numbers(device: str, tmp_path: Path) -> None:
    exporter = OpenvinoExporter(device=device)  # type: ignore[arg-type] # one of the words

    exported = exporter.export(tiny_network(nn.SiLU), pictures(8), tmp_path)

    runners = exporter.runners(exported, tmp_path)
    assert list(runners) == ["float", "int8"]
    assert exported.files == ("model-int8.xml", "model-int8.bin", "model.xml", "model.bin")
    found = {stage: run(pictures(4, seed=2).numpy()) for stage, run in runners.items()}
    # Eight bits give some 45 dB each, and a SiLU rounds three times.
    assert min(map(decibels, found["float"], found["int8"])) > 20
    assert f'<target_device value="{device}"' in (tmp_path / "model-int8.xml").read_text()


@needs_openvino
@pytest.mark.slow
def test_precise_modules_stay_real(tmp_path: Path) -> None:
    network = tiny_network(precise=("head", "backbone.1.conv"))

    OpenvinoExporter().export(network, pictures(4), tmp_path)

    shapes = re.findall(r'element_type="i8" shape="([^"]+)"', (tmp_path / "model-int8.xml").read_text())
    # Those of backbone.0.conv and down.0.conv.
    assert shapes == ["8, 3, 3, 3", "16, 12, 3, 3"]


@needs_openvino
def test_a_precise_module_that_is_not_there_is_refused_with_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"backbone\.1\.cov: is to stay real.* Did you mean 'backbone\.1\.conv'"):
        OpenvinoExporter().export(tiny_network(precise=("backbone.1.cov",)), pictures(1), tmp_path)


@needs_openvino
def test_an_operator_without_conversion_is_named_with_its_module(tmp_path: Path) -> None:
    network = tiny_network()
    decode = network.decode
    network = replace(network, module=Bessel(), decode={**decode, "levels": decode["levels"][:1]})

    preflight = OpenvinoExporter().check(network)
    with pytest.raises(ExportError, match=r"aten::special_bessel_j0: OpenVINO has no conversion for it"):
        OpenvinoExporter(numbers="float32").export(network, None, tmp_path)

    assert [(each.operator, each.placement) for each in preflight.verdicts] == [
        ("aten::special_bessel_j0", Placement.REFUSED)
    ]
    assert list(tmp_path.iterdir()) == []


@needs_openvino
def test_a_network_that_converts_has_nothing_refused() -> None:
    assert OpenvinoExporter().check(tiny_network()).verdicts == ()


@needs_openvino
@pytest.mark.slow
def test_files_are_the_same_each_time(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        OpenvinoExporter().export(tiny_network(), pictures(2), tmp_path / name)

    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


@needs_openvino
def test_nobody_is_told_of_its_use() -> None:
    library()

    assert sys.modules["openvino_telemetry"] is None
