"""Plugins to begin with: what is written, what is refused, and that they work as they are."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

import detloom
from detloom import authoring
from detloom.authoring import TEMPLATES, new_plugin
from detloom.cli import cli
from detloom.errors import PluginError
from detloom.kinds import Kind
from detloom.plugin_source import stated_api
from detloom.search.settings import load_search


@pytest.mark.parametrize("kind", TEMPLATES)
def test_all_files_are_there_and_no_word_of_the_template_is_left(tmp_path: Path, kind: str) -> None:
    folder = new_plugin(f"detloom-my-own-{kind}", kind, tmp_path)

    package = f"detloom_my_own_{kind}"
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    assert set(files) == {
        "README.md",
        "example.toml",
        "pyproject.toml",
        f"src/{package}/__init__.py",
        f"src/{package}/py.typed",
        f"src/{package}/registry.toml",
        f"tests/test_{package}.py",
    }
    text = "".join(path.read_text(encoding="utf-8") for path in files.values())
    words = ("plugin", "component", "kind", "summary", "reference", "file", "command")
    assert [word for word in (*(f"new-{word}" for word in words), "new_plugin", "NewComponent") if word in text] == []
    assert f'register("my-own", MyOwn{kind.capitalize()})' in files[f"src/{package}/__init__.py"].read_text()
    assert stated_api(files[f"src/{package}/__init__.py"].read_bytes()) == detloom.PLUGIN_API
    project = tomllib.loads(files["pyproject.toml"].read_text())["project"]
    assert project["entry-points"]["detloom.plugins"] == {f"detloom-my-own-{kind}": package}
    assert list(tomllib.loads(files[f"src/{package}/registry.toml"].read_text())) == [kind]


def test_every_template_is_offered() -> None:
    folders = {path.name for path in authoring.FOLDER.iterdir() if path.is_dir()}

    assert folders - {"__pycache__"} == {"common", *TEMPLATES}


@pytest.mark.slow
def test_every_kind_can_be_installed_and_passes_its_tests_at_once(tmp_path: Path) -> None:
    folders = [new_plugin(f"detloom-my-own-{kind}", kind, tmp_path) for kind in TEMPLATES]
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(site), *map(str, folders)], check=True)
    path = os.pathsep.join((str(site), os.environ.get("PYTHONPATH", "")))
    environment = {**os.environ, "PYTHONPATH": path}

    tests = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(str(each / "tests") for each in folders)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    linted = subprocess.run(
        [
            sys.executable,
            "-m",
            "ruff",
            "check",
            "--isolated",
            "--line-length=120",
            "--select=E,F,W,B,UP,SIM",
            *map(str, folders),
        ],
        capture_output=True,
        text=True,
        check=False,
    )

    assert tests.returncode == 0, tests.stdout[-4000:]
    assert linted.returncode == 0, linted.stdout


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("My-Plugin", "cannot name a distribution"),
        ("my_plugin", "cannot name a distribution"),
        ("1st-plugin", "cannot name a distribution"),
        ("my--plugin", "cannot name a distribution"),
        ("detloom-2d-assigner", "put a word before it, as detloom-my-2d-assigner"),
        ("../plugin", "cannot name a distribution"),
        ("", "cannot name a distribution"),
        ("class", "'class' is a word of Python itself; choose another, as detloom-class"),
        ("json", "'json' is a word of Python itself"),
        ("torch", "a package 'torch' is installed already"),
        ("detloom", "a package 'detloom' is installed already"),
        ("detloom-atss-assigner", "recipes would call it 'atss', a name that another assigner has"),
    ],
)
def test_names_that_cannot_be_used_are_refused(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        new_plugin(name, "assigner", tmp_path / "into")

    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "my-own").mkdir()
    (tmp_path / "my-own" / "precious").touch()

    with pytest.raises(PluginError, match="my-own: this is there already"):
        new_plugin("my-own", "assigner", tmp_path)

    assert [path.name for path in (tmp_path / "my-own").iterdir()] == ["precious"]


def test_nothing_half_written_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(folder: Path, *_: str) -> None:
        folder.mkdir()
        (folder / "pyproject.toml").touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(authoring, "_write", full)

    with pytest.raises(PluginError, match=r"No space left on device; nothing was"):
        new_plugin("my-own", "assigner", tmp_path)

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["scaling", "asigner", str(Kind.EVALUATOR)])
def test_kinds_without_a_template_are_refused_with_the_list(tmp_path: Path, kind: str) -> None:
    result = CliRunner().invoke(cli, ["plugin", "new", "my-own", "--kind", kind, "--into", str(tmp_path)])

    assert result.exit_code == 2
    assert f"there is no template of that kind.{' Did you mean' if kind == 'asigner' else ''}" in result.output
    assert "kinds: assigner, backbone, criterion, dataset, ema, exporter, head, neck, reparam, search" in result.output
    assert list(tmp_path.iterdir()) == []


def test_the_example_of_a_strategy_is_a_search(tmp_path: Path) -> None:
    of_search, of_head = (new_plugin(f"my-own-{kind}", kind, tmp_path) for kind in ("search", "head"))

    assert "detloom search example.toml\n" in (of_search / "README.md").read_text()
    assert "`example.toml` | a search that uses it" in (of_search / "README.md").read_text()
    assert "detloom train example.toml --data DATA" in (of_head / "README.md").read_text()
    assert load_search(of_search / "example.toml").strategy == {"use": "my-own"}


def test_the_command_says_what_it_wrote_and_what_is_next(tmp_path: Path) -> None:
    runner = CliRunner()

    told = runner.invoke(cli, ["plugin", "new", "my-own", "--kind", "ema", "--into", str(tmp_path)])
    as_json = runner.invoke(cli, ["plugin", "new", "other", "--kind", "ema", "--into", str(tmp_path), "--json"])

    assert f"next: cd {tmp_path / 'my-own'} && pip install -e '.[test]' && pytest" in told.output
    assert "src/my_own/__init__.py" in told.output
    facts = json.loads(as_json.output)
    assert facts["directory"] == str(tmp_path / "other")
    assert "src/other/__init__.py" in facts["files"]
