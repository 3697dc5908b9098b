"""Plugins' source: the API version, and files."""

import sys
from pathlib import Path
from textwrap import dedent

import pytest

from detloom import plugin_source
from detloom.errors import PluginError, RecipeError
from detloom.kinds import Kind
from detloom.plugin_source import api_complaint, plugin_options, source_of, stated_api
from detloom.workshop import Workshop

ASSIGNER = """
from dataclasses import dataclass
from detloom import hookimpl
from detloom.interfaces import Assigner

class Mine(Assigner):
    number = 1

    def assign(self, predictions, targets):
        raise NotImplementedError

@hookimpl
def register_components(register):
    register("mine", Mine)
"""


def shop_of_none() -> Workshop:
    return Workshop(installed=(), disabled=())


@pytest.mark.parametrize(
    ("source", "stated"),
    [
        ("PLUGIN_API = 3", 3),
        ("PLUGIN_API: int = 3", 3),
        ("PLUGIN_API = 'three'", None),
        ("if True:\n    PLUGIN_API = 3", None),
        ("from detloom import PLUGIN_API", None),
        ("this is no Python", None),
    ],
)
def test_the_version_is_a_plain_number_at_the_top(source: str, stated: int | None) -> None:
    assert stated_api(source.encode()) == stated


def test_a_plugin_that_states_nothing_was_written_for_the_first_version(monkeypatch: pytest.MonkeyPatch) -> None:
    assert api_complaint(None) is None

    monkeypatch.setattr(plugin_source, "PLUGIN_API", 2)

    assert api_complaint(2) is None
    complaint = api_complaint(None, "detloom-centre 0.3")
    assert complaint is not None
    assert "written for version 1 of the plugin API" in complaint
    assert "has version 2; `pip install --upgrade detloom-centre`, or install a detloom with version 1" in complaint


def test_a_newer_plugin_asks_for_a_newer_detloom_or_an_older_release() -> None:
    complaint = api_complaint(7, "detloom-centre 0.3")

    assert complaint is not None
    assert "`pip install --upgrade detloom`, or install a release of detloom-centre for version 1" in complaint


def test_the_source_of_a_submodule_is_found_without_importing_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "outer_package"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemError", encoding="utf-8")
    (package / "inner" / "__init__.py").write_text("", encoding="utf-8")
    (package / "module.py").write_text("", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))

    assert source_of("outer_package.module") == package / "module.py"
    assert source_of("outer_package.inner") == package / "inner" / "__init__.py"
    assert source_of("outer_package") == package / "__init__.py"
    assert source_of("outer_package.absent") is None
    assert source_of("no_such_package") is None
    assert "outer_package" not in sys.modules


def test_a_file_offers_its_components_to_the_workshop_that_loads_it(tmp_path: Path) -> None:
    path = tmp_path / "torch.py"
    path.write_text(ASSIGNER, encoding="utf-8")
    shop, torch = shop_of_none(), sys.modules["torch"]

    file = shop.load_file(path)

    assert shop.component(Kind.ASSIGNER, "mine").__name__ == "Mine"
    assert shop.provider(Kind.ASSIGNER, "mine") == f"file torch.py, sha256 {file.digest}"
    assert shop.files() == (file,)
    assert sys.modules["torch"] is torch
    with pytest.raises(RecipeError, match="no assigner is called 'mine'"):
        shop_of_none().component(Kind.ASSIGNER, "mine")


def test_a_file_that_changed_takes_its_own_place_and_one_that_did_not_is_not_run_again(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(ASSIGNER, encoding="utf-8")
    shop = shop_of_none()

    shop.load_file(path)
    first = shop.component(Kind.ASSIGNER, "mine")
    shop.load_file(path)
    second = shop.component(Kind.ASSIGNER, "mine")
    path.write_text(ASSIGNER.replace("number = 1", "number = 2"), encoding="utf-8")
    shop.load_file(path)

    assert second is first
    assert shop.component(Kind.ASSIGNER, "mine").number == 2


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("x = 1\nraise ValueError('no licence')", r"mine\.py, line 2: ValueError: no licence"),
        ("x = (\n", r"mine\.py, line 1: SyntaxError"),
        ("x = 1", r"mine\.py: it implements no hook"),
        ("PLUGIN_API = 9\nraise SystemError", r"mine\.py: it was written for version 9 .* `pip install --upgrade det"),
        (ASSIGNER.replace('"mine"', '"atss"'), r"mine\.py, line 14: it offers the assigner 'atss', a name that detl"),
        (ASSIGNER + "    raise KeyError('late')", r"mine\.py, line 15: KeyError: 'late'"),
        (ASSIGNER.replace("register_components", "register_component"), r"Did you mean 'register_components'"),
    ],
)
def test_a_file_that_cannot_be_used_is_told_with_its_line(tmp_path: Path, source: str, message: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(dedent(source), encoding="utf-8")
    shop = shop_of_none()

    with pytest.raises(PluginError, match=message):
        shop.load_file(path)

    assert shop.files() == ()
    assert "mine" not in shop.names(Kind.ASSIGNER)


def test_a_file_that_is_not_there_or_no_python_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"absent\.py: the plugin's file cannot be read: No such file"):
        shop_of_none().load_file(tmp_path / "absent.py")
    with pytest.raises(PluginError, match=r"a plugin that is a file ends in \.py"):
        shop_of_none().load_file("detloom_centre")


def test_options_name_a_file_below_by_its_way_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    words = plugin_options([tmp_path / "code" / "mine.py", tmp_path.parent / "far.py"])

    assert words == ("--plugin", "code/mine.py", "--plugin", str(tmp_path.parent / "far.py"))
