"""``detloom export``: targets, preflight, and an export from beginning to end."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from export_cases import PLUGIN, small_artifact, small_data

from detloom.cli import cli
from detloom.workshop import workshop


@pytest.fixture(autouse=True)
def own_workshop() -> Iterator[None]:
    """Give each test the environment's workshop as a new process has it."""
    workshop.cache_clear()
    yield
    workshop.cache_clear()


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["export", *map(str, arguments), "--plugin", str(PLUGIN)])


def test_targets_are_listed_below_their_exporters() -> None:
    result = run("--targets")

    assert result.exit_code == 0, result.output
    assert "trial  ready\n  trial-board\n  broken-board  fault='compiler'\n" in result.output


def test_targets_as_json_have_stable_keys() -> None:
    rows = json.loads(run("--targets", "--json").stdout)

    assert {"name": "broken-board", "exporter": "trial", "settings": {"fault": "compiler"}, "missing": None} in rows


def test_check_groups_modules_by_what_keeps_them_from_the_npu() -> None:
    result = run("demo", "--target", "trial-board", "--check", "--image-size", "64")

    assert result.exit_code == 0, result.output
    assert "trial-board, by the trial's own table\ncpu: only 1x1 fits\n  change: take 1x1\n  backbone." in result.output
    assert result.output.count("only 1x1 fits") == 1
    assert "58 operators: 35 on the NPU, 23 on the CPU; --all prints every module\n  sram_kib  12.5\n" in result.output
    assert "head.lead.0 " not in result.output


def test_check_with_a_module_that_is_refused_exits_with_2() -> None:
    settings = ("--set", "refuse=head.lead.0")

    result = run("demo", "--target", "trial", "--check", "--image-size", "64x96", *settings, "--json")

    assert result.exit_code == 2
    facts = json.loads(result.stdout)
    assert set(facts) == {"target", "source", "counts", "figures", "operators"}
    assert facts["counts"]["refused"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("best.safetensors",), "give an artifact and --target NAME; `detloom export --targets` lists"),
        (("--target", "trial"), "give an artifact and --target NAME"),
        (("demo", "--target", "trial-bord", "--check"), "Did you mean 'trial-board'?"),
        (("demo", "--target", "trial", "--check", "--set", "falt=x"), "Did you mean 'fault'?"),
        (
            ("demo", "--target", "trial", "--image-size", "64x"),
            "'64x' is no size; give a side, as 320, or HEIGHTxWIDTH",
        ),
        (("demo", "--target", "trial", "--check", "--mixed", "2"), "cannot tell the 2 layers that suffer most; name"),
        (("demo", "--target", "trial"), "this is a recipe, and an artifact with trained weights is needed"),
    ],
)
def test_mistakes_are_told(arguments: tuple[str, ...], message: str) -> None:
    result = run(*arguments)

    assert result.exit_code == 2
    assert message in result.output


def test_export_prints_the_chain_and_the_same_as_json(tmp_path: Path) -> None:
    artifact, data = small_artifact(tmp_path / "best.safetensors"), small_data(tmp_path / "data")
    asked = (artifact, "--target", "trial-board", "--data", data, "--calibration", "2", "--mixed", "backbone.stem.0")

    told = run(*asked, "--no-validate")
    again = run(*asked, "--json", "-o", tmp_path / "other", "--max-drop", "1")

    assert told.exit_code == 0, told.output
    assert f"wrote {tmp_path / 'best-trial-board'}: weights.bin, " in told.stdout
    assert "\nsimulator   worst output " in told.stdout
    assert "AP" not in told.stdout
    facts = json.loads(again.stdout)
    assert facts["directory"] == str(tmp_path / "other")
    assert facts["precise"] == ["backbone.stem.0.conv"]
    assert facts["stages"][-1]["AP"] is not None
    assert "a picture" in told.stdout
    assert "folding, and proving the result on 2 pictures" in told.stderr
    refused = run(*asked, "--no-validate")
    assert refused.exit_code == 2
    assert "there is an export already; --force takes its place" in refused.output
