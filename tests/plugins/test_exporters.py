"""What holds for every bundled exporter, beside the kit."""

import importlib.metadata
import tomllib
from pathlib import Path

import pytest

from detloom.catalogue import bundled_rows
from detloom.interfaces import Exporter
from detloom.kinds import Kind
from detloom.workshop import workshop

EXTRAS = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"][
    "optional-dependencies"
]
NAMES = sorted(row.name for row in bundled_rows() if row.kind == Kind.EXPORTER)


def exporter(name: str) -> type[Exporter]:
    cls: type[Exporter] = workshop().component(Kind.EXPORTER, name)
    return cls


@pytest.mark.parametrize("name", NAMES)
def test_report_names_versions_of_packages_that_an_extra_installs(name: str) -> None:
    extra = {"onnx-int8": "onnx", "rknn": "onnx"}.get(name, name)
    listed = {requirement.split("[")[0].split(">")[0] for requirement in EXTRAS[extra]}
    # What ExecuTorch brings along.
    brought = {"torchao", "ethos-u-vela", "tosa-tools"} if name == "executorch" else set()

    packages = exporter(name).packages

    assert packages
    assert set(packages) <= listed | brought


@pytest.mark.parametrize("name", NAMES)
def test_packages_are_distributions_where_nothing_is_missing(name: str) -> None:
    if missing := exporter(name).missing():
        pytest.skip(missing)

    for package in exporter(name).packages:
        assert importlib.metadata.version(package)


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"onnx", "openvino"}))
def test_branches_have_maps_of_their_own_where_a_map_has_one_scale(name: str) -> None:
    # The outputs of onnx are real numbers, and NNCF leaves those of openvino so.
    assert "raw-outputs" in exporter(name).passes
