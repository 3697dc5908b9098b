"""The verb ``paths``."""

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from detloom.artifacts import save_artifact
from detloom.assembly import assemble
from detloom.cli import cli
from detloom.recipe import load_recipe

KEYS = {
    *("source", "form", "outputs", "longest", "longest_shortest", "layers", "stages", "meetings", "alike"),
    *("unreached", "files"),
}


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["paths", *map(str, arguments)])


def test_json_has_stable_keys_and_files_are_written(tmp_path: Path) -> None:
    picture, document = tmp_path / "paths.png", tmp_path / "paths.html"

    result = run("yolov7-tiny", "-o", picture, "-o", document, "--json")

    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told.keys() == KEYS
    assert told["layers"][-1] == {
        "name": "head.lead.2.conv",
        "stage": "head 1/32",
        "uses": 1,
        "shortest": 1,
        "longest": 1,
        "paths": 1,
        "steps": [1],
        "sources": ["lead 32"],
        "by_output": {"lead 32": {"shortest": 1, "longest": 1, "paths": 1, "steps": [1]}},
    }
    assert told["meetings"][0].keys() == {"name", "structure", "feeders", "carried", "around"}
    assert told["stages"][0].keys() == {"name", "layers", "shortest", "longest", "sources", "shared"}
    assert [Path(file).stat().st_size > 1000 for file in told["files"]] == [True, True]


def test_output_that_is_chosen_is_the_only_one() -> None:
    result = run("yolov7-tiny", "--output", "lead 8", "--stages")

    assert result.exit_code == 0, result.output
    assert "1 output;" in result.output
    (unreached,) = (line for line in result.output.splitlines() if line.startswith("no gradient comes to "))
    assert re.fullmatch(r".* to \d+ of the layers: neck\.bottom_up\.0\.down\.conv, .* and \d+ more", unreached)
    assert "head 1/16" not in result.output


def test_numbers_are_whole_wherever_they_are_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    away = run("yolov7-tiny").output
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes it for a terminal
    monkeypatch.setenv("COLUMNS", "80")

    narrow = re.sub(r"\x1b\[[\d;]*m", "", run("yolov7-tiny").output)

    # A file has each layer in a line; a terminal has the numbers that it has room for.
    assert re.search(r"backbone\.stem\.0\.conv .* 11-33 .* 565,568 ", away)
    assert re.search(r"backbone 1/2 .* 11 .* 43 .* 565,568 .* 1 ", narrow)
    assert "11-33" not in narrow
    assert {len(line) for line in narrow.splitlines() if "│" in line} == {80}


def test_names_are_there_on_a_very_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "60")

    narrow = re.sub(r"\x1b\[[\d;]*m", "", run("yolov7-tiny").output)

    assert re.search(r"│ backbone\.ste.* 565,568 │", narrow)


def test_artifact_has_the_paths_of_its_recipe_and_a_folded_one_those_of_the_deployed_form(tmp_path: Path) -> None:
    recipe = load_recipe("yolov7-tiny", {"backbone.repconv": [1], "backbone.repconv_identity": False})
    artifact, folded = tmp_path / "tiny.safetensors", tmp_path / "folded.safetensors"
    detector = assemble(recipe, names=("a",))
    save_artifact(artifact, detector, recipe=recipe, names=("a",))
    save_artifact(folded, detector.fuse(), recipe=recipe, names=("a",), folded=recipe.tables["reparam"]["passes"])

    told = {source: json.loads(run(source, "--json").stdout) for source in (artifact, folded)}

    # Each of four RepConvs has two layers while training.
    assert [(each["form"], len(each["layers"])) for each in told.values()] == [("training", 62), ("deployed", 58)]
    assert [each["longest"] for each in told.values()] == [43, 43]


def test_deployed_form_of_a_recipe_has_its_repconvs_merged() -> None:
    changed = ("--set", "backbone.repconv=[1]", "--set", "backbone.repconv_identity=false")

    told = [json.loads(run("yolov7-tiny", *changed, *form, "--json").stdout) for form in ((), ("--deployed",))]

    assert [(each["form"], len(each["layers"])) for each in told] == [("training", 62), ("deployed", 58)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--output", "leed 8"), "there is no such output. Did you mean 'lead 8'?"),
        (("-o", "paths.txt"), "give --out a name that ends in .html or .png, .jpg"),
        (("-o", "nowhere/paths.png"), "there is no directory nowhere"),
    ],
)
def test_mistakes_are_refused_with_advice(arguments: tuple[str, str], message: str) -> None:
    result = run("yolov7-tiny", *arguments)

    assert result.exit_code == 2
    assert message in result.output
