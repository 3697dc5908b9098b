"""The verb ``assign``."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from detloom.artifacts import save_artifact
from detloom.assembly import assemble
from detloom.cli import cli
from detloom.recipe import load_recipe
from detloom.scenes import write_scenes

SMALL = ("--set", "data.image_size=64")


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(each) for each in arguments])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes") / "data", train=1, val=2, unseen=1)


def test_picture_and_page_are_written_and_counted(data: Path, tmp_path: Path) -> None:
    chosen = ("--assigner", "atss", "--assigner", '{ use = "yolov7", candidates = 20 }')

    result = run("assign", "yolov7-tiny", "--data", data, *chosen, *SMALL, "-o", tmp_path, "--json")

    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert [each["assigner"] for each in told["methods"]] == ["atss", "yolov7 (candidates 20)"]
    assert Path(told["picture"]).is_file()
    assert Path(told["page"]).is_file()


def test_same_seed_gives_the_same_matches(data: Path, tmp_path: Path) -> None:
    first, second = (run("assign", "yolov7-tiny", "--data", data, *SMALL, "-o", tmp_path).stdout for _ in range(2))

    assert first == second
    assert "yolov7, lead: " in first


def test_assigner_that_is_not_there_gets_a_suggestion(data: Path, tmp_path: Path) -> None:
    result = run("assign", "yolov7-tiny", "--data", data, "--assigner", "ats", *SMALL, "-o", tmp_path)

    assert result.exit_code == 2
    assert "Did you mean 'atss'?" in result.output
    assert list(tmp_path.iterdir()) == []


def test_broken_table_is_refused_under_the_option_that_was_typed(data: Path) -> None:
    result = run("assign", "yolov7-tiny", "--data", data, "--assigner", '{ use = "atss", ', *SMALL)

    assert result.exit_code == 2
    assert '--assigner: { use = "atss", is not valid TOML' in result.output
    assert "--set" not in result.output


def test_table_without_a_name_is_refused(data: Path) -> None:
    result = run("assign", "yolov7-tiny", "--data", data, "--assigner", "{ candidates = 9 }", *SMALL)

    assert result.exit_code == 2
    assert "give a name, as atss, or a table" in result.output


def test_artifact_of_other_classes_is_refused(data: Path, tmp_path: Path) -> None:
    recipe = load_recipe("yolov7-tiny", {"data.image_size": 64})
    artifact = tmp_path / "other.safetensors"
    save_artifact(artifact, assemble(recipe, names=("a",)), recipe=recipe, names=("a",))

    result = run("assign", artifact, "--data", data)

    assert result.exit_code == 2
    assert "knows the classes a, but" in result.output


def test_settings_that_an_artifact_has_settled_are_refused(tmp_path: Path) -> None:
    artifact = tmp_path / "a.safetensors"
    recipe = load_recipe("yolov7-tiny")
    save_artifact(artifact, assemble(recipe, names=("a",)), recipe=recipe, names=("a",))

    result = run("assign", artifact, "--data", tmp_path, "--set", "neck.auxiliary=[128, 256, 512]")

    assert result.exit_code == 2
    assert "--set neck.auxiliary: the artifact's network and training are settled" in result.output
