"""A study's directory: one study, one command at a time."""

from dataclasses import replace
from pathlib import Path

import pytest

from detloom.errors import ArtifactError
from detloom.recipe import Recipe
from detloom.study.cells import Cell
from detloom.study.directory import StudyDirectory, content_of
from detloom.study.settings import Study, StudySettings

STUDY = Study("s", StudySettings(recipe="demo", data="data"), "cells", {}, {"a": {}, "b": {"assigner": "atss"}}, {})


def test_second_command_is_refused_while_the_first_is_at_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detloom.study.locking.PATIENCE", 0.2)
    first, second = StudyDirectory(tmp_path / "one"), StudyDirectory(tmp_path / "one")
    first.open(content_of(STUDY, []))

    with pytest.raises(ArtifactError, match="another `detloom ablate` is at work in this directory"):
        second.open(content_of(STUDY, []))

    first.close()
    second.open(content_of(STUDY, []))
    second.close()


def test_same_study_goes_on_and_a_changed_one_is_refused(tmp_path: Path) -> None:
    directory = StudyDirectory(tmp_path / "one")
    directory.open(content_of(STUDY, []))
    directory.close()

    directory.check(content_of(STUDY, []))
    with pytest.raises(ArtifactError, match=r'differs in cells\.b\.assigner \("atss", now "paa"\)'):
        directory.check(content_of(replace(STUDY, cells={"a": {}, "b": {"assigner": "paa"}}), []))


def test_directory_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")

    with pytest.raises(ArtifactError, match=r"no directory of a study: it holds thesis\.txt"):
        StudyDirectory(tmp_path).open(content_of(STUDY, []))


def test_directory_below_a_file_is_told_to_be_put_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()

    with pytest.raises(ArtifactError, match=r"cannot be made: .*\n  Choose another place with --out"):
        StudyDirectory(tmp_path / "thesis.txt" / "one").open(content_of(STUDY, []))


def test_directory_that_cannot_be_written_is_told_to_be_put_elsewhere(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()

    with pytest.raises(ArtifactError, match=r"cannot be written: .*\n  Choose another place with --out"):
        StudyDirectory(tmp_path).open(content_of(STUDY, []))


def test_errors_are_kept_until_a_run_succeeds(tmp_path: Path) -> None:
    directory = StudyDirectory(tmp_path / "one")
    directory.run("a", 0).mkdir(parents=True)

    directory.note("a", 0, "no memory")
    kept = directory.error("a", 0)
    directory.note("a", 0, "")

    assert (kept, directory.error("a", 0)) == ("no memory", "")


def test_plugin_that_holds_something_else_now_is_a_change_and_one_that_was_moved_is_none(tmp_path: Path) -> None:
    def cells(folder: str, content: str) -> list[Cell]:
        path = tmp_path / folder / "mine.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
        return [Cell("a", {}, recipe=Recipe("r", {}, {}, plugins=(str(path),)))]

    directory = StudyDirectory(tmp_path / "one")
    directory.open(content_of(STUDY, cells("here", "1")))
    directory.close()

    directory.check(content_of(STUDY, cells("there", "1")))
    with pytest.raises(ArtifactError, match=r'differs in plugins\.mine\.py \(\["sha256 6b86b2'):
        directory.check(content_of(STUDY, cells("there", "2")))
