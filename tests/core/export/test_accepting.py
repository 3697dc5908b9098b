"""What an exporter returns, where it enters the core."""

from dataclasses import replace
from pathlib import Path

import pytest

from detloom.errors import PluginError
from detloom.export.accepting import check_exported
from detloom.export.network import Exported
from detloom.host_spec import InputSpec, TensorSpec
from detloom.testing.exporter_trials import SIZE, tiny_network

NETWORK = tiny_network()
SHAPES = [[1, channels, 64 // stride, 96 // stride] for stride in (8, 16) for channels in (4, 1, 3)]


def input_of(height: int, width: int) -> InputSpec:
    return {
        "name": "images",
        "layout": "NCHW",
        "height": height,
        "width": width,
        "dtype": "float32",
        "scale": None,
        "zero_point": 0,
        "fill": 114,
    }


def tensor(name: str, shape: list[int]) -> TensorSpec:
    return {"name": name, "layout": "NCHW", "shape": shape, "dtype": "float32", "scale": None, "zero_point": 0}


RIGHT = Exported(("model.bin",), input_of(*SIZE), tuple(map(tensor, NETWORK.map_names, SHAPES)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "model.bin").touch()
    (tmp_path / "outside.bin").touch()
    return folder


def test_right_one_is_returned(folder: Path) -> None:
    assert check_exported(RIGHT, NETWORK, folder, "mine") is RIGHT


def test_rows_and_columns_are_found_in_other_layouts(folder: Path) -> None:
    tensors = tuple(
        TensorSpec(**{**each, "layout": "NHWC", "shape": [1, *each["shape"][2:], each["shape"][1]]})
        for each in RIGHT.tensors
    )

    check_exported(replace(RIGHT, tensors=tensors), NETWORK, folder, "mine")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (None, "the exporter 'mine' returned a NoneType, not an Exported"),
        (replace(RIGHT, files=()), "returned no files"),
        (replace(RIGHT, files=("other.bin",)), "the file 'other.bin', which is not in the folder that it was given"),
        (replace(RIGHT, files=("../outside.bin",)), "the file '../outside.bin', which is not in the folder"),
        (replace(RIGHT, input=input_of(96, 64)), r"an input of height and width \[96, 64\], where the network's are"),
        (replace(RIGHT, tensors=RIGHT.tensors[:5]), "5 tensors, where the network has 6 maps: stride8_center_size, "),
        (
            replace(RIGHT, tensors=(*RIGHT.tensors[1::-1], *RIGHT.tensors[2:])),
            r"'stride8_objectness' of shape \[1, 1, 8, 12\] \(NCHW\) for the map 'stride8_center_size', which has 4 ch",
        ),
    ],
)
def test_what_breaks_the_contract_is_told(folder: Path, wrong: object, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        check_exported(wrong, NETWORK, folder, "mine")
