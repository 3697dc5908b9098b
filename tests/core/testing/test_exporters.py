"""Exporters that are wrong in one way each, which one check of the kit alone sees."""
# ruff: noqa: ARG002, FBT003 - the wrong ones override a method whose arguments each uses in part; a runner's name says it

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import Any
from unittest import SkipTest

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from detloom.errors import ExportError, RecipeError
from detloom.export.fine_tune import rounded_
from detloom.export.network import Exported, Network, Placement, Preflight, Runner, Verdict
from detloom.host_spec import TensorSpec
from detloom.interfaces import Exporter
from detloom.testing import check_component, checks_of, exporters

Caught = Callable[..., dict[str, str]]

KNOWN = (nn.Conv2d, nn.ReLU, nn.MaxPool2d, nn.Upsample, nn.Identity)


class PlainExporter(Exporter):
    """Eight bits, played in torch; the file holds the weights."""

    targets: Mapping[str, Mapping[str, Any]] = MappingProxyType({"plain-1": {"bits": 8}})
    calibrates = True

    def __init__(self, *, bits: int = 8) -> None:
        if bits < 1:
            raise RecipeError(f"bits must be at least 1, got {bits}")
        self.bits = bits
        self.module = nn.Module()
        self.calibration_NCHW = torch.empty(0)

    @classmethod
    def missing(cls) -> str | None:
        return None

    def check(self, network: Network) -> Preflight:
        known = [path for path, module in network.module.named_modules() if isinstance(module, nn.Conv2d)]
        wide = Verdict(known[0], "CONV", Placement.CPU, "it is too wide")
        return Preflight("plain-1", "a table", (wide, *(Verdict(path, "CONV", Placement.NPU) for path in known[1:])))

    def export(self, network: Network, calibration_NCHW: Tensor | None, folder: Path) -> Exported:
        assert calibration_NCHW is not None
        for path, module in network.module.named_modules():
            if not any(module.children()) and not isinstance(module, KNOWN):
                raise ExportError(f"{path}: this has no operator that is known")
        if network.precise:
            raise ExportError(f"{', '.join(network.precise)}: this has eight bits and no more")
        self.module, self.calibration_NCHW = copy.deepcopy(network.module), calibration_NCHW
        (folder / "weights").write_bytes(b"".join(each.numpy().tobytes() for each in self.module.state_dict().values()))
        maps = self.module(network.example_BCHW())
        tensors = tuple(self.tensor(name, raw) for name, raw in zip(network.map_names, maps, strict=True))
        height, width = network.image_size
        return Exported(
            ("weights",),
            {
                "name": "images",
                "layout": "NCHW",
                "height": height,
                "width": width,
                "dtype": "int8",
                "scale": 1 / 255,
                "zero_point": -128,
                "fill": 114,
            },
            tensors,
        )

    def tensor(self, name: str, raw_BCHW: Tensor) -> TensorSpec:
        batch, *sides = raw_BCHW.shape
        shape = [batch, *sides[1:], sides[0]]
        return {"name": name, "layout": "NHWC", "shape": shape, "dtype": "int8", "scale": 0.1, "zero_point": 0}

    def runners(self, exported: Exported, folder: Path) -> Mapping[str, Runner]:
        return {"float": self.runner(False), "int8": self.runner(True)}

    def runner(self, is_rounded: bool) -> Runner:
        def run(images_BCHW: NDArray[np.float32]) -> Sequence[NDArray[np.float32]]:
            images = torch.from_numpy(images_BCHW)
            with torch.no_grad():
                if not is_rounded:
                    return self.maps(images)
                with rounded_(self.module, self.calibration_NCHW):
                    return self.maps(images)

        return run

    def maps(self, images_BCHW: Tensor) -> list[NDArray[np.float32]]:
        return [each.numpy() for each in self.module(images_BCHW)]


class PositionalExporter(PlainExporter):
    targets = MappingProxyType({})

    def __init__(self, bits: int = 8) -> None:
        super().__init__(bits=bits)


class CarelessExporter(PlainExporter):
    def __init__(self, *, bits: int = 8) -> None:
        super().__init__(bits=8 // bits)


class TalkativeExporter(PlainExporter):
    @classmethod
    def missing(cls) -> str | None:
        return "" if cls.targets else None


class FancifulExporter(PlainExporter):
    targets = MappingProxyType({"plain-1": {"bites": 8}})


class VagueExporter(PlainExporter):
    def check(self, network: Network) -> Preflight:
        found = super().check(network)
        return replace(found, verdicts=tuple(replace(each, reason="") for each in found.verdicts))


class LitteringExporter(PlainExporter):
    def check(self, network: Network) -> Preflight:
        Path("compiler.log").touch()
        return super().check(network)


class GreedyExporter(PlainExporter):
    def export(self, network: Network, calibration_NCHW: Tensor | None, folder: Path) -> Exported:
        exported = super().export(network, calibration_NCHW, folder)
        network.module.train()
        return exported


class SecretiveExporter(PlainExporter):
    def export(self, network: Network, calibration_NCHW: Tensor | None, folder: Path) -> Exported:
        (folder / "left.tmp").touch()
        return super().export(network, calibration_NCHW, folder)


class UnsteadyExporter(PlainExporter):
    clock = count()

    def export(self, network: Network, calibration_NCHW: Tensor | None, folder: Path) -> Exported:
        exported = super().export(network, calibration_NCHW, folder)
        (folder / "weights").write_text(str(next(self.clock)))
        return exported


class ScalelessExporter(PlainExporter):
    def tensor(self, name: str, raw_BCHW: Tensor) -> TensorSpec:
        return {**super().tensor(name, raw_BCHW), "scale": None}


class SortingExporter(PlainExporter):
    """Its outputs come in another order, as a compiler may have them."""

    def maps(self, images_BCHW: Tensor) -> list[NDArray[np.float32]]:
        return super().maps(images_BCHW)[::-1]


class BlendingExporter(PlainExporter):
    """What it finds in a picture depends a little on how many there are."""

    def maps(self, images_BCHW: Tensor) -> list[NDArray[np.float32]]:
        return [each + np.float32(1e-3 * (len(each) > 1)) for each in super().maps(images_BCHW)]


class NoisyExporter(PlainExporter):
    def maps(self, images_BCHW: Tensor) -> list[NDArray[np.float32]]:
        return [each * np.float32(1.5) for each in super().maps(images_BCHW)]


class CoarseExporter(PlainExporter):
    """Its scale is ten times too wide; in float it is right."""

    def runner(self, is_rounded: bool) -> Runner:
        right = super().runner(is_rounded)
        step = 1.0 if is_rounded else 1e-6

        def run(images_BCHW: NDArray[np.float32]) -> Sequence[NDArray[np.float32]]:
            return [np.round(each / step).astype(np.float32) * np.float32(step) for each in right(images_BCHW)]

        return run


class ForgetfulExporter(PlainExporter):
    """What it does not know it leaves out."""

    def export(self, network: Network, calibration_NCHW: Tensor | None, folder: Path) -> Exported:
        module = copy.deepcopy(network.module)
        for path, each in list(module.named_children()):
            if not any(each.children()) and not isinstance(each, KNOWN):
                setattr(module, path, nn.Identity())
        return super().export(replace(network, module=module), calibration_NCHW, folder)


class StubbornExporter(PlainExporter):
    def export(self, network: Network, calibration_NCHW: Tensor | None, folder: Path) -> Exported:
        return super().export(replace(network, precise=()), calibration_NCHW, folder)


class AbsentExporter(PlainExporter):
    @classmethod
    def missing(cls) -> str | None:
        return "the compiler is missing: pip install compiler"


WRONG: dict[str, tuple[type[Exporter], str]] = {
    "settings_are_keyword_only_and_typed": (PositionalExporter, "every setting is keyword-only"),
    "numbers_without_sense_are_refused_by_name": (CarelessExporter, "bits=0 raises ZeroDivisionError"),
    "missing_packages_are_told_in_one_line": (TalkativeExporter, "missing() returned ''"),
    "devices_stand_for_settings_that_it_has": (FancifulExporter, "bites"),
    "preflight_says_where_modules_run_and_why": (VagueExporter, "stem.0: CONV is 'cpu' without a reason"),
    "preflight_writes_nothing": (LitteringExporter, "check() wrote compiler.log"),
    "network_and_pictures_are_left_as_they_were": (GreedyExporter, "work on copies"),
    "files_lie_in_the_folder_and_nowhere_else": (SecretiveExporter, "wrote left.tmp, weights and names weights"),
    "exporting_again_gives_the_same_bytes": (UnsteadyExporter, "weights differ when exported again"),
    "host_is_told_all_of_input_and_outputs": (ScalelessExporter, "is int8 with scale None"),
    "outputs_come_in_the_order_of_the_maps": (SortingExporter, "returned maps of shapes"),
    "pictures_of_a_batch_do_not_touch": (BlendingExporter, "in a batch than for it alone"),
    "what_runs_is_what_was_given": (CoarseExporter, "dB of signal over noise"),
    "unknown_operator_is_named_with_its_module": (ForgetfulExporter, "exported without a word"),
    "modules_that_need_more_bits_get_them_or_are_refused": (StubbornExporter, "the files are the same"),
}


def test_right_exporter_passes_all() -> None:
    check_component(PlainExporter)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_exporter_is_caught_by_its_check_alone_and_told_why(name: str, caught: Caught) -> None:
    cls, message = WRONG[name]

    broken = caught(cls)

    assert set(broken) == {name}
    assert message in broken[name]


def test_every_check_of_exporters_has_a_wrong_one() -> None:
    assert [check.__name__ for check in exporters.CHECKS] == list(WRONG)


def test_exporter_without_its_packages_is_held_to_what_it_says_of_them() -> None:
    ran, skipped = [], []
    for check in checks_of(AbsentExporter):
        try:
            check()
        except SkipTest as reason:
            skipped.append(str(reason))
        else:
            ran.append(check.name)

    assert ran == ["settings_are_keyword_only_and_typed", "missing_packages_are_told_in_one_line"]
    assert set(skipped) == {"the compiler is missing: pip install compiler"}


def test_checks_that_cannot_be_run_are_no_failures() -> None:
    check_component(AbsentExporter)


def test_numbers_of_a_float_form_that_are_wrong_are_told_with_the_output() -> None:
    checks = {check.name: check for check in checks_of(NoisyExporter)}

    with pytest.raises(AssertionError, match=r"'stride8_center_size' of the runner 'float' is .* from the network's"):
        checks["what_runs_is_what_was_given"]()
