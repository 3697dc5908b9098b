"""The rknn exporter: with a stand-in for the vendor's toolkit, and with the real one where there is one."""

import os
import stat
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from detloom.decode_spec import DecodeSpec
from detloom.errors import ExportError, RecipeError
from detloom.export.network import Network, Placement
from detloom.testing.exporter_trials import tiny_network
from detloom_plugins.rknn import RknnExporter
from detloom_plugins.rknn.layers import module_of, verdicts_of
from detloom_plugins.rknn.toolkit import PYTHON_VARIABLE, Build

onnx = pytest.importorskip("onnx", reason="onnx is not installed: pip install 'detloom[onnx]'")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'detloom[onnx]'")

# Behaves as the toolkit does where we rely on it: codes, a table in the log, and maps of the ONNX file.
STAND_IN = """
import os, sys
import numpy as np
import onnx, onnxruntime

class RKNN:
    def __init__(self, verbose): print("I stand-in")
    def config(self, target_platform, **more):
        self.chip = target_platform
        return 0
    def load_onnx(self, path):
        self.path = path
        return 0
    def build(self, do_quantization, dataset):
        if self.chip == "rk3562":
            print("E build: unsupported operator Frobnicate")
            return -1
        if self.chip == "rk3566":
            os._exit(3)
        names = open(dataset).read().split() if dataset else []
        print(f"I calibrated on {len(names)}")
        for index, node in enumerate(onnx.load(self.path).graph.node):
            target = "CPU" if node.op_type == "Softplus" else "NPU"
            name = f"{node.op_type}:{node.name}"
            print(f"D RKNN: [00:00:00.001] {index}  {node.op_type}  INT8  {target}  (1,3)  (1,3)  3/5/7  1  {name}")
        print("D RKNN: [00:00:00.002] Total Weight Memory Size: 10.5KB")
        return 0
    def export_rknn(self, path):
        open(path, "wb").write(b"RKNN" * 256)
        return 0
    def init_runtime(self):
        self.session = onnxruntime.InferenceSession(self.path)
        return 0
    def inference(self, inputs, data_format):
        assert data_format == ["nhwc"] and inputs[0].dtype == np.uint8 and inputs[0].shape[0] == 1
        return self.session.run(None, {"images": inputs[0].transpose(0, 3, 1, 2).astype(np.float32) / 255})
    def release(self): pass
"""


class _Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU())
        self.levels = nn.ModuleList([nn.Conv2d(4, 6, 1), nn.Sequential(nn.Conv2d(4, 6, 3, 2, 1))])
        self.softplus = nn.Softplus()

    def forward(self, images_BCHW: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x_BCHW = self.stem(images_BCHW)
        return self.levels[0](x_BCHW), self.softplus(self.levels[1](x_BCHW))


def _network(*, precise: tuple[str, ...] = ()) -> Network:
    decode: DecodeSpec = {
        "num_classes": 1,
        "levels": [{"stride": 2, "priors": [[8, 8]]}, {"stride": 4, "priors": [[16, 16]]}],
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
    torch.manual_seed(0)
    return Network(_Tiny().eval(), (32, 48), decode, ("cell",), precise)


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Name an interpreter that has the stand-in for the toolkit."""
    package = tmp_path / "packages" / "rknn"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "api.py").write_text(STAND_IN, encoding="utf-8")
    about = package.parent / "rknn_toolkit2-2.5.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: rknn-toolkit2\nVersion: 2.5.0\n", encoding="utf-8")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={package.parent} exec {sys.executable} "$@"\n', encoding="utf-8")
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv(PYTHON_VARIABLE, str(python))


@pytest.mark.usefixtures("stand_in")
def test_what_was_built_is_written_and_simulated(tmp_path: Path) -> None:
    network, exporter = _network(), RknnExporter(chip="rk3588")
    pixels_BHW3 = np.random.default_rng(0).integers(0, 256, (3, 32, 48, 3), dtype=np.uint8)
    images_BCHW = pixels_BHW3.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)

    exported = exporter.export(network, torch.rand(5, 3, 32, 48), tmp_path)
    maps = exporter.runners(exported, tmp_path)["simulator"](images_BCHW)

    assert exported.files == ("model.rknn", "model.onnx")
    assert (tmp_path / "model.rknn").read_bytes().startswith(b"RKNN")
    assert [each["name"] for each in exported.tensors] == ["stride2", "stride4"]
    assert [each["shape"] for each in exported.tensors] == [[1, 6, 16, 24], [1, 6, 8, 12]]
    with torch.inference_mode():
        wanted = network.module(torch.from_numpy(images_BCHW))
    for got_BCHW, wanted_BCHW in zip(maps, wanted, strict=True):
        assert np.allclose(got_BCHW, wanted_BCHW.numpy(), atol=1e-5)


@pytest.mark.usefixtures("stand_in")
def test_every_layer_is_told_with_its_module_and_place() -> None:
    network = _network()

    preflight = RknnExporter(chip="rk3588").check(network)

    modules = {path for path, _ in network.module.named_modules()}
    assert {each.module for each in preflight.verdicts} <= modules
    assert {each.module for each in preflight.verdicts if each.operator == "Conv"} == {
        "stem.0",
        "levels.0",
        "levels.1.0",
    }
    assert [each.module for each in preflight.at(Placement.CPU)] == ["softplus"]
    assert preflight.source.startswith("rknn-toolkit2 2.5.0: ")
    assert preflight.figures["cpu_operators"] == 1
    assert preflight.figures["cycles"] == 7 * len(preflight.verdicts)
    assert preflight.figures["weight_memory_kib"] == 10.5


@pytest.mark.usefixtures("stand_in")
def test_all_pictures_are_given_to_calibrate_on() -> None:
    with Build(_network(), torch.rand(5, 3, 32, 48), chip="rk3588", numbers="int8", method="normal") as build:
        assert "calibrated on 5" in build.log


@pytest.mark.usefixtures("stand_in")
def test_toolkit_that_refuses_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"(?s)cannot compile for rk3562.*unsupported operator Frobnicate.*build"):
        RknnExporter(chip="rk3562").export(_network(), torch.rand(2, 3, 32, 48), tmp_path)

    assert not list(tmp_path.glob("*.rknn"))


@pytest.mark.usefixtures("stand_in")
def test_toolkit_that_dies_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"(?s)cannot compile for rk3566.*stand-in"):
        RknnExporter(chip="rk3566").export(_network(), torch.rand(2, 3, 32, 48), tmp_path)


def test_missing_toolkit_is_one_line_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PYTHON_VARIABLE, raising=False)
    unset = RknnExporter.missing()
    monkeypatch.setenv(PYTHON_VARIABLE, "/nowhere/python")
    wrong = RknnExporter.missing()

    assert unset is not None
    assert PYTHON_VARIABLE in unset
    assert wrong is not None
    assert wrong.startswith(
        f"the exporter 'rknn' needs rknn-toolkit2, and {PYTHON_VARIABLE}=/nowhere/python cannot import rknn.api; "
    )


def test_integers_need_pictures_and_real_numbers_none(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="'rknn' needs pictures"):
        RknnExporter().export(_network(), None, tmp_path)

    assert RknnExporter().calibrates
    assert not RknnExporter(numbers="float16").calibrates


def test_more_precise_modules_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"stem\.0 should have more than 8 bits.*float16"):
        RknnExporter().export(_network(precise=("stem.0",)), None, tmp_path)
    with pytest.raises(ExportError, match=r"stem\.0 should have more than 8 bits.*float16"):
        RknnExporter().check(_network(precise=("stem.0",)))


def test_chip_without_floats_is_told_so() -> None:
    with pytest.raises(RecipeError, match="rv1106 computes in integers alone"):
        RknnExporter(chip="rv1106", numbers="float16")


def test_unknown_chip_gets_a_suggestion() -> None:
    with pytest.raises(RecipeError, match="Did you mean 'rk3588'"):
        RknnExporter(chip="rk3558")


def test_simulator_needs_an_export(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="export first"):
        RknnExporter().runners(None, tmp_path)  # type: ignore[arg-type]  # nothing was exported


@pytest.mark.parametrize(
    ("node", "module"),
    [
        ("Conv:backbone.stem.0.conv/Conv", "backbone.stem.0.conv"),
        ("Conv:stages.0.1/Conv_2", "stages.0.1"),
        ("Resize:/Resize", ""),
    ],
)
def test_node_is_named_after_its_module(node: str, module: str) -> None:
    assert module_of(node) == module


def test_layer_of_the_real_table_is_read() -> None:
    # As rknn-toolkit2 2.5.0 prints it.
    line = (
        "D RKNN: [16:14:04.301] 2    ConvExMish         INT8     CPU    (1,16,32,32),(32,16,3,3),(32)            "
        "(1,32,16,16)           1245/2304/2304           20           Conv:2/Conv    "
    )
    edge = (
        "D RKNN: [16:14:04.301] 6    OutputOperator     INT8     CPU    (1,24,32,32)                             "
        "\\                      0/0/0                    32           OutputOperator:stride4"
    )

    [verdict] = verdicts_of(f"{line}\n{edge}\n")

    assert (verdict.module, verdict.operator, verdict.placement, verdict.cycles) == (
        "2",
        "ConvExMish",
        Placement.CPU,
        2304,
    )
    assert "CPU" in verdict.reason


@pytest.mark.usefixtures("stand_in")
def test_onnx_file_is_one_that_the_toolkit_reads_with_the_maps_as_outputs(tmp_path: Path) -> None:
    RknnExporter(numbers="float16").export(_network(), None, tmp_path)

    model = onnx.load(tmp_path / "model.onnx")
    assert [each.name for each in model.graph.output] == ["stride2", "stride4"]
    # The toolkit's onnx is 1.18 at best.
    assert model.opset_import[0].version == 12
    assert model.ir_version <= 10


@pytest.mark.usefixtures("stand_in")
def test_what_onnx_cannot_express_is_refused_with_its_module(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"odd: .*special_bessel_j0"):
        RknnExporter().export(tiny_network(odd=True), torch.rand(2, 3, 64, 96), tmp_path)

    assert not list(tmp_path.glob("model.*"))


@pytest.mark.skipif(not os.environ.get(PYTHON_VARIABLE), reason=f"{PYTHON_VARIABLE} names no rknn-toolkit2")
def test_real_toolkit_compiles_and_simulates(tmp_path: Path) -> None:
    network, exporter = _network(), RknnExporter(chip="rv1106")
    images_NCHW = torch.rand(8, 3, 32, 48)

    exported = exporter.export(network, images_NCHW, tmp_path)
    maps = exporter.runners(exported, tmp_path)["simulator"](images_NCHW.numpy())

    assert (tmp_path / "model.rknn").stat().st_size > 1000
    with torch.inference_mode():
        wanted = network.module(images_NCHW)
    for got_BCHW, wanted_BCHW in zip(maps, wanted, strict=True):
        noise = ((got_BCHW - wanted_BCHW.numpy()) ** 2).mean()
        # Two layers of eight bits lose little.
        assert noise < 1e-2 * float(wanted_BCHW.var())
