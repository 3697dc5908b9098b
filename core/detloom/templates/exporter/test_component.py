"""The checks of detloom's kit, then what is exported, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from new_plugin import NewComponent
from torch import nn

import detloom
from detloom.errors import ExportError
from detloom.export.network import Network, Placement
from detloom.testing import Check, parametrize_with_checks
from detloom.testing.exporter_trials import tiny_network


def network(module: nn.Module) -> Network:
    """Return a network that consists of one module."""
    return Network(nn.Sequential(module).eval(), (8, 8), tiny_network().decode, ("a", "b", "c"))


@parametrize_with_checks(NewComponent)
def test_it_keeps_its_contract(check: Check) -> None:
    check()


def test_the_recipe_can_be_used() -> None:
    assert detloom.check(Path(__file__).parents[1] / "example.toml").num_classes == 80


def test_program_lists_what_the_network_does(tmp_path: Path) -> None:
    NewComponent().export(tiny_network(), None, tmp_path)

    program = json.loads((tmp_path / "model.json").read_text())
    done = [each["do"] for each in program if each["do"] != "weight"]
    assert done[:3] == ["input", "conv2d", "relu"]
    assert done[-1] == "output"


def test_wide_windows_fall_to_the_cpu_of_a_small_chip() -> None:
    preflight = NewComponent(largest_kernel=3).check(network(nn.MaxPool2d(5, 1, 2)))

    (verdict,) = preflight.at(Placement.CPU)
    assert (verdict.module, verdict.operator) == ("0", "max_pool2d")
    assert verdict.reason == "its window is 5 wide, 3 is the most"


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.GELU(), "gelu: the chip does not know it"),
        (nn.Conv2d(3, 3, 3, groups=3), "conv2d: the chip does not know it with these arguments"),
        (nn.Upsample(scale_factor=1.5), "upsample_nearest2d: the chip enlarges by whole factors alone"),
    ],
)
def test_what_the_chip_would_compute_wrong_is_refused(tmp_path: Path, module: nn.Module, reason: str) -> None:
    with torch.no_grad(), pytest.raises(ExportError, match=f"^0: {reason}"):
        NewComponent().export(network(module), None, tmp_path)
