"""The verbs that use an artifact: ``val`` and ``predict``."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from detloom.artifacts import save_artifact
from detloom.assembly import assemble
from detloom.cli import cli
from detloom.data.splits import open_split
from detloom.recipe import load_recipe
from detloom.scenes import write_scenes


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(each) for each in arguments])


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("artifact") / "untrained.safetensors"
    recipe = load_recipe("yolov7-tiny", {"data.image_size": 64, "data.workers": 0})
    names = ("a", "b")
    save_artifact(path, assemble(recipe, names=names), recipe=recipe, names=names)
    return path


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "grey.png"
    Image.fromarray(np.full((64, 64, 3), 99, np.uint8)).save(path)
    return path


def test_settings_of_prediction_can_be_set(artifact: Path, picture: Path) -> None:
    every = ("--set", "predict.score=0", "--set", "predict.max_detections=7", "--set", "predict.overlap=1")

    result = run("predict", artifact, picture, "--json", "--precision", "bfloat16", "--device", "cpu", *every)

    assert result.exit_code == 0, result.output
    assert len(json.loads(result.stdout)[0]["detections"]) == 7


def test_pictures_that_were_left_out_are_told_without_advice_to_leave_them_out(artifact: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"nothing")

    result = run("predict", artifact, broken, "--skip-bad")

    assert result.exit_code == 0, result.output
    assert f"left out: {broken}: cannot be decoded (its content is of no known format)\n" in result.output


def test_misspelt_setting_of_prediction_is_refused(artifact: Path, picture: Path) -> None:
    result = run("predict", artifact, picture, "--set", "predict.socre=0.1")

    assert result.exit_code == 2
    assert "socre" in result.output
    assert "score" in result.output


@pytest.mark.parametrize("verb", [["predict", "picture.png"], ["val", "--data", "somewhere"]])
@pytest.mark.parametrize("key", ["train.epochs=3", "assigner.use=atss", "backbone.widths=3", "name=x"])
def test_settings_that_an_artifact_has_settled_are_refused(verb: list[str], key: str) -> None:
    result = run(verb[0], "none.safetensors", *verb[1:], "--set", key)

    assert result.exit_code == 2
    assert f"--set {key.partition('=')[0]}: the artifact's network and training are settled" in result.output
    assert "[data], [predict], [evaluator], [dataset] alone" in result.output


@pytest.mark.parametrize("verb", [["predict", "picture.png"], ["val", "--data", "."]])
def test_recipe_in_place_of_an_artifact_is_told_so(verb: list[str], tmp_path: Path) -> None:
    recipe = tmp_path / "my.toml"
    recipe.write_text('extends = "demo"\n')

    result = run(verb[0], recipe, *verb[1:])

    assert result.exit_code == 2
    assert f"{recipe}: this is a recipe, and an artifact with trained weights is needed" in result.output


def test_unknown_device_is_refused(artifact: Path, picture: Path) -> None:
    result = run("predict", artifact, picture, "--device", "cuda:99")

    assert result.exit_code == 2
    assert "device 'cuda:99' cannot be used here" in result.output


def written_for(scenes: Path, named: Path) -> Path:
    recipe = load_recipe("yolov7-tiny", {"data.image_size": 64})
    names = open_split(scenes, "val").names
    save_artifact(named, assemble(recipe, names=names), recipe=recipe, names=names)
    return named


@pytest.mark.parametrize(("count", "words"), [(1, "1 faulty picture or box"), (2, "2 faulty pictures and boxes")])
def test_val_counts_what_it_went_on_without(tmp_path: Path, count: int, words: str) -> None:
    scenes = write_scenes(tmp_path / "scenes", train=1, val=3)
    named = written_for(scenes, tmp_path / "named.safetensors")
    for record in open_split(scenes, "val").images[:count]:
        record.path.write_bytes(b"nothing")

    result = run("val", named, "--data", scenes, "--skip-bad")

    assert result.exit_code == 0, result.output
    assert f"went on without {words}\n" in result.output


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_unknown_device_is_refused_by_val_too(tmp_path: Path, device: str) -> None:
    scenes = write_scenes(tmp_path / "scenes", train=1, val=1)
    named = written_for(scenes, tmp_path / "named.safetensors")

    result = run("val", named, "--data", scenes, "--device", device)

    assert result.exit_code == 2
    assert f"device '{device}' cannot be used here" in result.output
    assert "At hand are: cpu" in result.output
    assert "ipu" not in result.output
    assert "evaluating" not in result.output


def test_classes_of_another_data_set_are_refused(artifact: Path, tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", train=1, val=1)

    result = run("val", artifact, "--data", tmp_path / "scenes")

    assert result.exit_code == 2
    assert "the detector has 2 (a, b)" in result.output
    assert "evaluating" not in result.output
