"""The light verbs, their JSON, their speed and their mistakes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from detloom.cli import VERBS, cli, main
from detloom.scenes import write_scenes

HEAVY = "{'torch', 'timm', 'albumentations', 'cv2', 'pycocotools', 'numpy'}"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["list"],
        ["list", "assigner", "--json"],
        ["show", "yolov7-tiny"],
        ["show", "yolov7-tiny", "--origin"],
        ["show", "yolov7-tinny"],
        ["train", "yolov7-tiny", "--data", "data", "--set", "assigner.use=atts"],
        ["show", "yolov7-tiny", "--set", "trian.epochs=3"],
        ["chekc"],
    ],
)
def test_light_verbs_and_mistakes_in_names_import_no_torch(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom detloom.cli import cli\n"
        f"try: cli({arguments!r}, prog_name='detloom')\n"
        "except SystemExit: pass\n"
        f"heavy = {HEAVY} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("verb", [*((verb,) for verb in sorted(VERBS)), ("plugin", "new")])
def test_help_shows_no_mark_of_click(verb: tuple[str, ...]) -> None:
    result = run(*verb, "--help")

    assert result.exit_code == 0
    assert "\\b" not in result.output
    assert "\b" not in result.output


def test_help_of_train_says_how_the_device_is_chosen() -> None:
    assert "ACCELERATE_USE_CPU=true" in run("train", "--help").output


def test_help_gives_each_example_a_line_of_its_own() -> None:
    lines = [line.strip() for line in run("train", "--help").output.splitlines()]

    assert {"detloom train yolov7-tiny --data data/bccd", "detloom train --resume runs/yolov7-tiny-1"} <= set(lines)


def test_check_reports_mistakes_of_all_kinds_together() -> None:
    wrong = ("assigner.use=atts", "train.optimizer=adamz", "train.init_from=none.safetensors", "criterion.bux=1")

    result = run("check", "yolov7-tiny", *(word for each in wrong for word in ("--set", each)))

    assert result.exit_code == 2
    for said in ("'atts'. Did you mean 'atss'?", "no 'adamz'", "none.safetensors: there is no such file", "'bux'"):
        assert said in result.output


def test_check_counts_the_classes_of_the_data(tmp_path: Path) -> None:
    data = write_scenes(tmp_path / "data", train=1, val=1, unseen=1)

    result = run("check", "yolov7-tiny", "--data", str(data), "--json")

    assert json.loads(result.stdout)["num_classes"] == 5


def test_check_of_faulty_data_tells_what_goes_on_without_the_faults(tmp_path: Path) -> None:
    data = write_scenes(tmp_path / "data", train=2, val=1, unseen=0)
    next((data / "images").rglob("train_*")).unlink()

    refused = run("check", "demo", "--data", str(data))
    skipped = run("check", "demo", "--data", str(data), "--set", "data.skip_bad=true")

    assert refused.exit_code == 2
    assert "`detloom train --skip-bad`, or skip_bad = true in [data]" in refused.stdout
    assert "--skip-bad" not in skipped.stdout


def test_list_as_json_has_the_documented_keys() -> None:
    rows = json.loads(run("list", "--json").stdout)

    assert all(set(row) == {"kind", "name", "summary", "reference", "plugin"} for row in rows)
    assert {"kind": "assigner", "name": "atss"}.items() <= next(row for row in rows if row["name"] == "atss").items()


@pytest.mark.parametrize("arguments", [["list", "asigner"], ["info", "asigner", "atss"]])
def test_misspelt_kind_gets_a_suggestion(arguments: list[str]) -> None:
    result = run(*arguments)

    assert result.exit_code == 2
    assert "no kind is called 'asigner'. Did you mean 'assigner'? Kinds: backbone, neck" in result.output


def test_check_as_json_has_the_documented_keys() -> None:
    facts = json.loads(run("check", "yolov7-tiny", "--json").stdout)

    assert facts["parameters"] == {"training": 6_228_762, "deployed": 6_219_709}
    assert set(facts["gflops"]) == {"training", "deployed"}
    assert facts["strides"] == [8, 16, 32]
    assert facts["warnings"] == []


def test_mistake_exits_with_2_and_prints_no_traceback() -> None:
    result = run("check", "yolov7-tiny", "--set", "assigner.use=atts")

    assert result.exit_code == 2
    assert "Did you mean 'atss'?" in result.output
    assert "Traceback" not in result.output


def test_wrong_verb_is_suggested() -> None:
    result = run("trian")

    assert result.exit_code == 2
    assert "no command is called 'trian'. Did you mean 'train'?" in result.output


def test_origin_names_the_layer_that_set_a_value() -> None:
    lines = run("show", "yolov7-tiny", "--origin", "--set", "assigner.use=atss").stdout.splitlines()

    assert any(line.split() == ["assigner.use", "=", '"atss"', "#", "overrides"] for line in lines)
    assert any(line.split()[:3] == ["observers.csv", "=", "{}"] for line in lines)
    assert any("backbone.use" in line and line.endswith("# yolov7-tiny") for line in lines)


def test_info_lists_settings_with_defaults() -> None:
    facts = json.loads(run("info", "assigner", "atss", "--json").stdout)

    assert {"name": "candidates", "type": "whole number", "required": False, "default": 9} in facts["settings"]


def test_info_tells_types_and_defaults_as_recipes_write_them() -> None:
    lines = [line.strip() for line in run("info", "backbone", "elan").stdout.splitlines()]
    nested = [line.strip() for line in run("info", "assigner", "coarse-to-fine").stdout.splitlines()]

    options = '"none", "pool", "strided", "two-branch" or "combined"'
    assert f'transitions: array of {options}  = ["none", "pool", "pool", "pool"]' in lines
    assert "space_to_depth: true or false  = false" in lines
    assert "inner: table with `use`, which names an assigner  required" in nested
    assert "coarse: table with `use`, which names an assigner  may be left out" in nested


def test_schema_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    result = run("schema", "-o", str(tmp_path / "nowhere/schema.json"))

    assert result.exit_code == 2
    assert "cannot be written" in result.stderr


def test_schema_accepts_the_bundled_recipes_and_refuses_a_wrong_setting() -> None:
    schema = json.loads(run("schema").stdout)
    assigner = schema["properties"]["assigner"]["allOf"]
    atss = next(rule for rule in assigner if rule["if"]["properties"]["use"]["const"] == "atss")

    assert schema["additionalProperties"] is False
    assert atss["then"]["additionalProperties"] is False
    assert atss["then"]["properties"]["candidates"]["type"] == "integer"


def test_doctor_imports_everything() -> None:
    result = run("doctor", "--json")

    assert result.exit_code == 0, result.output
    assert {"torch", "opencv-python-headless", "pillow", "hotcoco"} <= json.loads(result.stdout)["versions"].keys()


def test_doctor_reports_everything_before_it_complains_of_a_misspelt_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETLOOM_DISABLE_PLUGINS", "no-such-plugin")

    text, data = run("doctor"), run("doctor", "--json")

    assert text.exit_code == data.exit_code == 2
    assert "components imported" in text.stdout
    assert "DETLOOM_DISABLE_PLUGINS: no plugin is installed under the name 'no-such-plugin'" in text.stderr
    assert "no-such-plugin" in json.loads(data.stdout)["misfits"][0]


def test_completion_offers_verbs_and_recipes() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "detloom"],
        env={
            "_DETLOOM_COMPLETE": "bash_complete",
            "COMP_WORDS": "detloom show yolov7-t",
            "COMP_CWORD": "2",
            "PATH": "",
        },
        capture_output=True,
        text=True,
        check=False,
    )

    assert "plain,yolov7-tiny" in done.stdout


def test_run_without_a_finished_epoch_names_no_artifacts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from detloom.engine import fit as engine
    from detloom.engine.run import Run
    from detloom.recipe import load_recipe

    run_ = Run(tmp_path, load_recipe("demo"), ("a",), "data", {}, 3, status="interrupted")
    monkeypatch.setattr(engine, "fit", lambda *_args, **_settings: run_)

    result = run("train", "demo", "--data", "data", "--json")

    assert result.exit_code == 130
    assert json.loads(result.stdout)["best"] is None
    assert json.loads(result.stdout)["last"] is None


def test_stopped_run_is_not_told_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from detloom.engine import fit as engine
    from detloom.engine.run import Run
    from detloom.recipe import load_recipe

    run_ = Run(tmp_path, load_recipe("demo"), ("a",), "data", {}, 3, status="interrupted")
    monkeypatch.setattr(engine, "fit", lambda *_args, **_settings: run_)

    result = run("train", "demo", "--data", "data")

    assert result.exit_code == 130
    assert not result.output, "the view of the run has said how to go on"


@pytest.mark.parametrize(
    ("given", "taken"),
    [({}, "3000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)],
)
def test_threads_spin_for_a_moment_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], taken: str | None
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        # Set first, so that what the command sets is taken back after the test.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["detloom", "--version"])

    with pytest.raises(SystemExit):
        main()

    assert os.environ.get("GOMP_SPINCOUNT") == taken
