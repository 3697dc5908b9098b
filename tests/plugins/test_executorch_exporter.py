"""The executorch exporter; what needs ExecuTorch itself is skipped where it is not installed."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from detloom.decode_spec import DecodeSpec
from detloom.errors import ExportError, RecipeError
from detloom.export.network import Network, Placement
from detloom_plugins.executorch_exporter import ExecutorchExporter

is_here = importlib.util.find_spec("executorch") is not None
needs_executorch = pytest.mark.skipif(
    not is_here, reason="ExecuTorch is not installed: pip install 'detloom[executorch]'"
)


def _network(make_level: Callable[[], nn.Module], *, precise: tuple[str, ...] = ()) -> Network:
    decode: DecodeSpec = {
        "num_classes": 1,
        "levels": [{"stride": 2, "priors": [[8, 8]]}],
        "outputs": [
            {"name": "center", "channels": 2},
            {"name": "size", "channels": 2},
            {"name": "classes", "channels": 1},
        ],
        "box": {
            "form": "center-and-size",
            "center": {"activation": "sigmoid", "scale": 2.0, "shift": -0.5},
            "size": {"activation": "sigmoid", "limit": None, "scale": 2.0, "exponent": 2.0, "unit": "prior"},
        },
        "score": ["classes"],
        "suppression": True,
    }

    class Tiny(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.LeakyReLU(0.1))
            self.middle = make_level()
            self.last = nn.Conv2d(8, 5, 1)

        def forward(self, images_BCHW: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return (self.last(self.middle(self.stem(images_BCHW))),)

    torch.manual_seed(0)
    return Network(Tiny().eval(), (32, 48), decode, ("cell",), precise)


def _loss(got_BCHW: NDArray[np.float32], wanted_BCHW: torch.Tensor) -> float:
    """Return the error's share of the variance."""
    return float(((got_BCHW - wanted_BCHW.numpy()) ** 2).mean() / wanted_BCHW.numpy().var())


@needs_executorch
@pytest.mark.parametrize(
    ("settings", "stage", "most"),
    [
        ({"backend": "xnnpack", "numbers": "float32"}, "float", 1e-8),
        ({"backend": "xnnpack"}, "int8", 1e-2),
        pytest.param({"backend": "ethos-u"}, "simulator", 1e-2, marks=pytest.mark.slow),
    ],
)
def test_program_gives_what_the_network_gives(
    settings: dict[str, str], stage: str, most: float, tmp_path: Path
) -> None:
    network, exporter = _network(nn.Identity), ExecutorchExporter(**settings)  # type: ignore[arg-type]  # literals
    images_NCHW = torch.rand(6, 3, 32, 48)

    exported = exporter.export(network, images_NCHW, tmp_path)
    [maps_BCHW] = exporter.runners(exported, tmp_path)[stage](images_NCHW.numpy())

    with torch.inference_mode():
        [wanted_BCHW] = network.module(images_NCHW)
    assert maps_BCHW.shape == wanted_BCHW.shape
    assert _loss(maps_BCHW, wanted_BCHW) < most
    assert exported.preflight is not None
    assert not exported.preflight.at(Placement.CPU)
    assert {each.module for each in exported.preflight.verdicts} >= {"stem.0", "stem.1", "last"}


@needs_executorch
def test_operator_that_the_backend_leaves_is_told_with_its_module() -> None:
    network = _network(lambda: nn.Upsample(scale_factor=2))

    preflight = ExecutorchExporter(backend="xnnpack").check(network)

    assert [(each.module, each.operator) for each in preflight.at(Placement.CPU)] == [
        ("middle", "aten.upsample_nearest2d")
    ]
    assert preflight.figures["cpu_operators"] == 1


@pytest.mark.skipif(is_here, reason="ExecuTorch is installed")
def test_missing_package_is_one_line_that_says_what_to_install(tmp_path: Path) -> None:
    line = ExecutorchExporter.missing()

    assert line == (
        "the exporter 'executorch' needs executorch, torchao, which this Python lacks: "
        "pip install 'detloom[executorch]'"
    )
    with pytest.raises(ExportError, match="needs executorch, torchao"):
        ExecutorchExporter().export(_network(nn.Identity), torch.rand(2, 3, 32, 48), tmp_path)
    assert not list(tmp_path.iterdir())


def test_more_precise_modules_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"stem\.0 should have more than 8 bits.*leave out --mixed"):
        ExecutorchExporter().export(_network(nn.Identity, precise=("stem.0",)), None, tmp_path)
    with pytest.raises(ExportError, match=r"stem\.0 should have more than 8 bits.*leave out --mixed"):
        ExecutorchExporter().check(_network(nn.Identity, precise=("stem.0",)))


def test_integers_need_pictures_and_real_numbers_none(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="'executorch' needs pictures"):
        ExecutorchExporter().export(_network(nn.Identity), None, tmp_path)

    assert ExecutorchExporter().calibrates
    assert not ExecutorchExporter(numbers="float32").calibrates


def test_ethos_u_takes_no_floats() -> None:
    with pytest.raises(RecipeError, match="Ethos-U computes in integers alone"):
        ExecutorchExporter(backend="ethos-u", numbers="float32")


def test_unknown_accelerator_gets_a_suggestion() -> None:
    with pytest.raises(RecipeError, match="Did you mean 'ethos-u55-256'"):
        ExecutorchExporter(accelerator="ethos-u55-265")
