"""Run directories hold one run each."""

import json
from pathlib import Path

import pytest

from detloom.engine.run import EpochRecord, Run, open_run, read_run
from detloom.errors import ArtifactError
from detloom.interfaces import Metrics
from detloom.recipe import Recipe


def recipe(**train: object) -> Recipe:
    return Recipe("mine", {"train": {"epochs": 3, **train}}, {"train": "mine.toml"})


def opened(out: Path | None, *, resume: bool = False, **train: object) -> Run:
    return open_run(recipe(**train), data="data", names=("a", "b"), out=out, resume=resume)


def test_new_run_notes_its_recipe_and_where_it_came_from(tmp_path: Path) -> None:
    run = opened(tmp_path / "run")
    run.write_records()

    again, data = read_run(run.directory)
    assert again.tables == run.recipe.tables
    assert again.name == "mine"
    assert data == "data"
    assert json.loads((run.directory / "origins.json").read_text()) == {"train": "mine.toml"}


def test_runs_are_numbered_where_no_directory_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    found = [str(opened(None).directory) for _ in range(2)]

    assert found == ["runs/mine-1", "runs/mine-2"]


def test_directory_with_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")

    with pytest.raises(ArtifactError, match=r"not empty") as caught:
        opened(tmp_path)

    assert "resume" not in str(caught.value)


def test_start_that_was_killed_does_not_refuse_the_next(tmp_path: Path) -> None:
    opened(tmp_path / "run").close()
    (tmp_path / "run/recipe.toml").rename(tmp_path / "run/recipe.toml.7-7.unfinished")

    opened(tmp_path / "run").close()

    assert read_run(tmp_path / "run")[1] == "data"
    assert not list((tmp_path / "run").glob("*.unfinished"))


def test_run_can_be_resumed_as_soon_as_it_has_its_recipe(tmp_path: Path) -> None:
    opened(tmp_path / "run").close()

    _, data = read_run(tmp_path / "run")

    assert data == "data"


def test_directory_with_something_else_is_not_resumed(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")

    with pytest.raises(ArtifactError, match=r"no directory of a run: it holds notes\.txt"):
        opened(tmp_path, resume=True)


def test_missing_directory_is_not_resumed(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="there is no run to resume"):
        opened(tmp_path / "nowhere", resume=True)


def test_resuming_needs_the_same_recipe(tmp_path: Path) -> None:
    opened(tmp_path / "run").close()

    with pytest.raises(ArtifactError, match=r"another recipe; it differs in train\.epochs \(3, now 4\)"):
        opened(tmp_path / "run", resume=True, epochs=4)


def test_resuming_needs_the_same_classes(tmp_path: Path) -> None:
    run = opened(tmp_path / "run")
    run.write_records()
    run.close()

    with pytest.raises(ArtifactError, match=r"with the classes \['a', 'b'\], the data now has \['a'\]"):
        open_run(recipe(), data="data", names=("a",), out=tmp_path / "run", resume=True)


def test_directory_serves_one_process_at_a_time(tmp_path: Path) -> None:
    run = opened(tmp_path / "run")

    with pytest.raises(ArtifactError, match="another process is training"):
        opened(tmp_path / "run", resume=True)

    run.close()
    opened(tmp_path / "run", resume=True).close()


def test_unwritable_place_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(ArtifactError, match="cannot be made"):
        opened(tmp_path / "file/run")


def test_what_was_not_begun_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no run here that can be resumed(.|\n)*begin it anew"):
        read_run(tmp_path)


def test_absent_directory_of_a_run_is_told_without_an_errno(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"nowhere: there is no such directory. Give that of a run"):
        read_run(tmp_path / "nowhere")


def test_misspelt_directory_of_a_run_is_suggested(tmp_path: Path) -> None:
    opened(tmp_path / "runs/demo-1").close()

    with pytest.raises(ArtifactError, match=r"dmeo-1: there is no such directory. Did you mean '\S+/runs/demo-1'\?"):
        read_run(tmp_path / "runs/dmeo-1")


def test_directory_that_holds_no_run_is_told_without_an_errno(tmp_path: Path) -> None:
    opened(tmp_path / "runs/demo-1").close()
    (tmp_path / "empty").mkdir()

    with pytest.raises(ArtifactError, match=r"it has no recipe.toml\n  Give the directory of a run") as caught:
        read_run(tmp_path / "empty")
    with pytest.raises(ArtifactError, match=r"it has no recipe.toml\n  Did you mean \S+/runs/demo-1\?"):
        read_run(tmp_path / "runs")

    assert "Errno" not in str(caught.value)


def test_run_without_its_description_is_told_so(tmp_path: Path) -> None:
    opened(tmp_path / "run").close()
    (tmp_path / "run/run.json").unlink()

    with pytest.raises(ArtifactError, match=r"can be resumed: run.json: no such file or directory\n"):
        read_run(tmp_path / "run")

    (tmp_path / "run/run.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"can be resumed: run.json has no 'name'\n"):
        read_run(tmp_path / "run")


def test_directory_below_a_file_is_told_to_be_put_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()

    with pytest.raises(ArtifactError, match=r"cannot be made: .*\n  Choose another place with --out"):
        opened(tmp_path / "notes.txt" / "run")


def test_directory_of_a_run_is_told_the_command_that_goes_on(tmp_path: Path) -> None:
    opened(tmp_path).close()

    with pytest.raises(ArtifactError, match=r"not empty(.|\n)*detloom train --resume"):
        opened(tmp_path)


def test_metrics_are_json_without_nan(tmp_path: Path) -> None:
    run = opened(tmp_path / "run")
    run.history.append(EpochRecord(1, 10, {"box": 0.5}, 0.01, 1.0, {"AP": 0.3, "APs": float("nan")}, {}, 0.3))

    run.write_records()

    line = json.loads((run.directory / "metrics.jsonl").read_text(), parse_constant=pytest.fail)
    assert line["metrics"] == {"AP": 0.3, "APs": None}


def test_fitness_counts_what_cannot_be_measured_as_nothing(tmp_path: Path) -> None:
    run = opened(tmp_path / "run")

    assert run.fitness_of(Metrics({"AP": 0.5, "AP50": float("nan")}, {})) == pytest.approx(0.45)


def test_run_shows_itself_in_a_notebook(tmp_path: Path) -> None:
    run = opened(tmp_path / "run")
    run.history.append(EpochRecord(1, 10, {"box": 0.5}, 0.01, 1.0, {"AP": 0.3, "AP50": 0.6}, {}, 0.33))

    assert "<td>0.300</td><td>0.600</td>" in run._repr_html_()
