"""The doctor: versions, plugins, files, and the kit over what third parties offer."""

import importlib.metadata
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from detloom.cli import doctor
from detloom.workshop import Workshop

EXAMPLE = Path(__file__).parents[3] / "examples" / "detloom-centre-assigner" / "src" / "detloom_centre" / "__init__.py"
# Its matches are those of the first image alone.
WRONG = """

class Wrong(CentreAssigner):
    def assign(self, predictions, targets):
        found = super().assign(predictions, targets)
        keep = found.image_M == 0
        return Assignment(found.image_M[keep], found.prior_M[keep], found.target_M[keep], found.quality_M[keep])

class Plain(Neck):
    def forward(self, levels):
        return tuple(levels)

@hookimpl
def register_components(register):
    register("centre", CentreAssigner)
    register("wrong", Wrong)
    register("plain", Plain)
"""


@pytest.fixture(autouse=True)
def _nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "Workshop", lambda **_: Workshop(installed=(), disabled=()))


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(doctor.command, [str(each) for each in arguments])


def test_the_kit_says_which_components_of_a_plugin_break_which_checks(tmp_path: Path) -> None:
    plugin = tmp_path / "plugin.py"
    source = EXAMPLE.read_text(encoding="utf-8").replace("import Assigner\n", "import Assigner, Neck\n")
    plugin.write_text(source + WRONG, encoding="utf-8")

    result = invoke("--plugin", plugin, "--kit", "--json")
    told = invoke("--plugin", plugin, "--kit")

    assert result.exit_code == told.exit_code == 2
    facts = json.loads(result.output)
    kit = {each["name"]: each for each in facts["kit"]}
    assert sorted(kit) == ["centre", "plain", "wrong"]
    assert kit["centre"]["failures"] == []
    assert kit["centre"]["checks"] > 10
    assert any("Wrong" in failure for failure in kit["wrong"]["failures"])
    assert "plugin of a file plugin.py, sha256" in told.output
    assert f"passes {kit['centre']['checks']} checks" in told.output
    assert f"breaks {len(kit['wrong']['failures'])} of" in told.output


def test_what_the_kit_cannot_check_is_no_failure() -> None:
    template = Path(doctor.__file__).parents[1] / "templates" / "dataset" / "component.py"

    result = invoke("--plugin", template, "--kit")

    assert result.exit_code == 0
    assert "kit: dataset 'new-component' (file component.py, sha256 " in result.output
    assert "passes 3 checks\n" in result.output
    assert (
        "not checked: they need an example, which the plugin's own tests have: example is recognised, " in result.output
    )


def test_what_needs_no_example_is_checked_without_one(tmp_path: Path) -> None:
    source = (Path(doctor.__file__).parents[1] / "templates" / "dataset" / "component.py").read_text(encoding="utf-8")
    greedy = source.replace('return (path / CLASSES).is_file() and any(path.glob("*.csv"))', "return True")
    (tmp_path / "plugin.py").write_text(greedy, encoding="utf-8")

    result = invoke("--plugin", tmp_path / "plugin.py", "--kit", "--json")

    assert result.exit_code == 2
    (found,) = json.loads(result.output)["kit"]
    assert found["checks"] == 3
    assert ["other folders are not recognised" in each for each in found["failures"]] == [True]


def test_without_the_kit_nothing_is_checked_and_all_is_fine() -> None:
    result = invoke("--plugin", EXAMPLE)

    assert result.exit_code == 0
    assert "plugin API 1" in result.output
    assert "kit:" not in result.output


def test_a_distribution_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "timm":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)

    assert json.loads(invoke("--json").output)["versions"]["timm"] == "not installed"
