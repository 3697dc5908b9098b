"""The network as an ONNX file of 8-bit integers, and what makes integers bad."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny_network import SIDE, SPEC, Tiny, decibels, pictures, tiny_network
from torch import Tensor, nn

from detloom.errors import ExportError, RecipeError
from detloom.export.network import Exported, Network
from detloom_plugins.equal_maps import worst_decibels
from detloom_plugins.onnx_int8_exporter import OnnxInt8Exporter

onnx = pytest.importorskip("onnx", reason="needs the extra 'onnx'")
numpy_helper = pytest.importorskip("onnx.numpy_helper", reason="needs the extra 'onnx'")

# The older of torch's exporters writes 13, in a tenth of the time.
OPSET = 13


@dataclass(frozen=True)
class Written:
    """Files, and what runs them."""

    exported: Exported
    model: Any
    maps: dict[str, Sequence[NDArray[np.float32]]]

    @property
    def weights(self) -> dict[str, NDArray[Any]]:
        """Return the constants of the file of integers by name."""
        return {each.name: numpy_helper.to_array(each) for each in self.model.graph.initializer}

    @property
    def decibels(self) -> list[float]:
        """Return how near each map of integers is to the real one."""
        return [decibels(its, mine) for its, mine in zip(self.maps["float"], self.maps["int8"], strict=True)]


def written(exporter: OnnxInt8Exporter, network: Network, folder: Path, calibration: Tensor | None = None) -> Written:
    """Export to a folder, and run what was written on pictures that it was not calibrated on."""
    exported = exporter.export(network, pictures(8) if calibration is None else calibration, folder)
    runners = exporter.runners(exported, folder)
    found = {stage: run(pictures(4, seed=2).numpy()) for stage, run in runners.items()}
    return Written(exported, onnx.load(folder / "model-int8.onnx"), found)


def test_integers_are_near_to_real_numbers(tmp_path: Path) -> None:
    made = written(OnnxInt8Exporter(opset=OPSET, calibration="min-max"), tiny_network(), tmp_path)

    # Eight bits give some 45 dB each, and errors add over five convolutions.
    assert min(made.decibels) > 25
    assert made.exported.files == ("model-int8.onnx", "model.onnx")


def test_weights_are_integers_with_a_scale_for_each_output_channel(tmp_path: Path) -> None:
    made = written(OnnxInt8Exporter(opset=OPSET, calibration="min-max"), tiny_network(), tmp_path)

    for path, channels in (("backbone.0.conv", 8), ("down.0.conv", 16), ("head.1", 8)):
        assert made.weights[f"{path}.weight_quantized"].dtype == np.int8
        assert made.weights[f"{path}.weight_scale"].shape == (channels,)


def test_a_host_is_told_of_real_input_and_outputs(tmp_path: Path) -> None:
    made = written(OnnxInt8Exporter(opset=OPSET, calibration="min-max"), tiny_network(), tmp_path)

    real = onnx.TensorProto.FLOAT
    assert [each.type.tensor_type.elem_type for each in (*made.model.graph.input, *made.model.graph.output)] == [
        real
    ] * 3
    assert {made.exported.input["dtype"], *(each["dtype"] for each in made.exported.tensors)} == {"float32"}
    assert [each.name for each in made.model.graph.output] == [each["name"] for each in made.exported.tensors]


def test_precise_modules_stay_real_with_all_inside_them(tmp_path: Path) -> None:
    network = tiny_network(precise=("head", "backbone.1.conv"))

    made = written(OnnxInt8Exporter(opset=OPSET, calibration="min-max"), network, tmp_path)

    real = {name for name, array in made.weights.items() if array.dtype == np.float32 and name.endswith(".weight")}
    assert real == {"head.0.weight", "head.1.weight", "backbone.1.conv.weight"}
    assert "3 operators of head, backbone.1.conv stay real." in made.exported.notes


def test_a_precise_module_that_is_not_there_is_refused_with_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"backbone\.1\.cov: is to stay real.* Did you mean 'backbone\.1\.conv'"):
        written(OnnxInt8Exporter(opset=OPSET), tiny_network(precise=("backbone.1.cov",)), tmp_path)


def test_symmetric_activations_have_no_zero_point(tmp_path: Path) -> None:
    made = written(
        OnnxInt8Exporter(opset=OPSET, activations="int8", symmetric=True, calibration="min-max"),
        tiny_network(),
        tmp_path,
    )

    zeros = [array for name, array in made.weights.items() if name.endswith("_zero_point")]
    assert zeros
    assert all(array.dtype in (np.int8, np.int32) and not array.any() for array in zeros)
    assert min(made.decibels) > 20


def test_the_activations_of_one_picture_at_a_time_are_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calibrate = pytest.importorskip("onnxruntime.quantization.calibrate", reason="needs the extra 'onnx'")
    held = []
    collect = calibrate.HistogramCollector.collect

    def counted(self: object, name_to_arrays: dict[str, list[object]]) -> object:
        held.append(max(len(arrays) for arrays in name_to_arrays.values()))
        return collect(self, name_to_arrays)

    monkeypatch.setattr(calibrate.HistogramCollector, "collect", counted)

    written(OnnxInt8Exporter(opset=OPSET, calibration="percentile"), tiny_network(), tmp_path)

    assert held == [1] * 8


def spiked(count: int) -> Tensor:
    """Return pictures with one pixel that drives what reads it far below zero."""
    images_BCHW = pictures(count)
    images_BCHW[:, :, SIDE // 2, SIDE // 2] = 8
    return images_BCHW


def negative_on_spikes(network: Network) -> Network:
    """Return the network with a channel that is far below zero where a pixel is brighter than those around it."""
    with torch.no_grad():
        channel = network.module.get_parameter("backbone.0.conv.weight")[0]
        channel.fill_(10 / 8)
        channel[:, 1, 1] = -10
    return network


def test_silu_with_a_long_negative_tail_is_not_calibrated_by_its_extremes(tmp_path: Path) -> None:
    network = negative_on_spikes(tiny_network(nn.SiLU))
    by_default = OnnxInt8Exporter(opset=OPSET, percentile=99.8)
    by_extremes = OnnxInt8Exporter(opset=OPSET, calibration="min-max")
    (tmp_path / "extremes").mkdir()

    made = written(by_default, network, tmp_path, spiked(8))
    other = written(by_extremes, network, tmp_path / "extremes", spiked(8))

    assert made.exported.notes[1].startswith("Ranges of activations by percentile 99.8 of 8 pictures: the worst map")
    assert min(made.decibels) > min(other.decibels) + 6


def test_where_percentiles_cut_what_matters_extremes_are_taken(tmp_path: Path) -> None:
    made = written(OnnxInt8Exporter(opset=OPSET, percentile=80), tiny_network(), tmp_path)

    assert made.exported.notes[1].startswith("Ranges of activations by min-max of 8 pictures: the worst map of 8")
    assert "; percentile 80, which was tried too, " in made.exported.notes[1]
    assert {path.name for path in tmp_path.iterdir()} == set(made.exported.files)


class Decoded(nn.Module):
    """Boxes in pixels and scores in one tensor, as an export of a decoded network would have them."""

    def __init__(self, network: Tiny) -> None:
        super().__init__()
        self.network = network

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor]:
        """Return ``[B, 8, P, 1]``."""
        raw_B8P = torch.cat([each.flatten(2) for each in self.network(images_BCHW)], 2)
        decoded_B8P = torch.cat((raw_B8P[:, :4].sigmoid() * 640, raw_B8P[:, 4:].sigmoid()), 1)
        return (decoded_B8P[..., None],)


def test_scores_live_in_raw_outputs_and_would_die_in_decoded_ones(tmp_path: Path) -> None:
    raw = tiny_network()
    assert isinstance(raw.module, Tiny)
    decoded = replace(raw, module=Decoded(raw.module), decode={**SPEC, "levels": SPEC["levels"][:1]})
    scores = {}

    for name, network in (("raw", raw), ("decoded", decoded)):
        (tmp_path / name).mkdir()
        maps = written(OnnxInt8Exporter(opset=OPSET, calibration="min-max"), network, tmp_path / name).maps
        scores[name] = [np.unique(np.concatenate([each[:, 4:].ravel() for each in maps[stage]])) for stage in maps]

    # One scale has steps of two pixels, and scores from 0 to 1 are all the same.
    assert len(scores["decoded"][1]) == 1 < len(scores["decoded"][0])
    assert len(scores["raw"][1]) > 50


def test_the_worst_map_says_how_near_a_file_is() -> None:
    wanted = [np.array([3.0, 4.0], np.float32), np.array([1.0, 0.0], np.float32)]
    found = [np.array([3.0, 4.0], np.float32), np.array([1.0, 0.1], np.float32)]

    assert worst_decibels(found, wanted) == pytest.approx(20, abs=1e-4)


def test_pictures_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="'onnx-int8' needs pictures"):
        OnnxInt8Exporter().export(tiny_network(), None, tmp_path)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"opset": 12}, "opset must be from 13 to 23, got 12"),
        ({"percentile": 50.0}, "percentile must be above 50 and at most 100, got 50"),
        ({"percentile": 100.5}, "percentile must be above 50 and at most 100, got 100.5"),
    ],
)
def test_settings_without_sense_are_refused(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(RecipeError, match=complaint):
        OnnxInt8Exporter(**settings)
