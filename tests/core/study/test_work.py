"""One item of a study's work, done as a process of its own does it: from what its task says, and from nothing else."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from detloom.errors import RecipeError
from detloom.recipe import Recipe, load_recipe
from detloom.scenes import write_scenes
from detloom.study import work
from detloom.study.runs import compare_runs
from detloom.study.work import latency_task, measured_file, perform, train_task
from detloom.workshop import workshop

# Of the backbone's slot, so that the weights cannot be read without it.
PLUGIN = '''
from detloom import hookimpl
from detloom_plugins.elan import ElanBackbone

class Mine(ElanBackbone):
    """Mine."""

@hookimpl
def register_components(register):
    register("mine", Mine)
'''
TINY = {
    "backbone.use": "mine",
    "backbone.stem": [[3, 2, 8], [3, 2, 8]],
    "backbone.transitions": ["none", "pool", "pool", "pool"],
    "backbone.hidden": [8, 8, 8, 8],
    "backbone.widths": [8, 16, 16, 16],
    "backbone.depth": 1,
    "neck.hidden": [8, 8, 8],
    "neck.widths": [8, 8, 8],
    "neck.outputs": [16, 16, 16],
    "data.image_size": 64,
    "data.workers": 0,
    "train.epochs": 1,
    "train.evaluate_every": 0,
    "train.batch": 4,
}


@pytest.fixture(autouse=True)
def own_workshop() -> Iterator[None]:
    """Give each test the environment's workshop as a new process has it."""
    workshop.cache_clear()
    yield
    workshop.cache_clear()


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("code") / "my_backbone.py"
    path.write_text(PLUGIN, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run(plugin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    data = write_scenes(folder / "data", train=4, val=2, unseen=0)
    recipe: Recipe = load_recipe("yolov7-tiny", TINY, plugins=[plugin])
    task = json.loads(json.dumps(train_task(recipe, data=str(data), out=folder / "seed-0", weights="last")))
    workshop.cache_clear()

    perform(task)
    return folder / "seed-0"


def test_process_of_a_run_knows_the_plugins_that_are_files(run: Path, plugin: Path) -> None:
    assert measured_file(run, "last").exists()
    assert f"{plugin}" in (run / "recipe.toml").read_text(encoding="utf-8")


def test_process_that_times_a_detector_knows_them_too(
    run: Path, plugin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "LONG_ENOUGH", 0.0)

    perform(latency_task(run, out=tmp_path / "latency.json", weights="last", plugins=[str(plugin)]))

    assert json.loads((tmp_path / "latency.json").read_text(encoding="utf-8"))["after"] > 0


def test_runs_with_such_a_plugin_are_compared_when_it_is_given_and_not_unasked(
    run: Path, plugin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "LONG_ENOUGH", 0.0)
    groups = {"one": [run], "other": [run]}

    with pytest.raises(RecipeError, match=r"give its path: --plugin my_backbone\.py"):
        compare_runs(groups, resamples=100)

    report = compare_runs(groups, resamples=100, plugins=[plugin])
    assert [cell.name for cell, _ in report.cells] == ["one", "other"]
