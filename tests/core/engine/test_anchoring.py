"""Anchors at the start of a training, and by the command."""

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from detloom.artifacts import read_artifact
from detloom.cli import cli
from detloom.data.records import Annotations, ImageRecord
from detloom.engine.anchoring import FOUND, HEAD_ANCHORS, box_sizes, head_anchors
from detloom.engine.fit import fit, resume
from detloom.engine.run import ORIGINS
from detloom.errors import RecipeError
from detloom.hookspecs import hookimpl
from detloom.interfaces import Observer
from detloom.recipe import load_recipe
from detloom.scenes import write_scenes

SERVING = [[[8, 8]], [[20, 20]], [[16, 6]]]
WRONG = [[[300, 300]], [[310, 300]], [[320, 300]]]
SMALL: dict[str, Any] = {
    "data.image_size": 64,
    "data.workers": 0,
    "train.epochs": 1,
    "train.batch": 2,
    "anchors.use": "evolved-kmeans",
    "anchors.generations": 20,
    HEAD_ANCHORS: WRONG,
}


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes") / "data", train=4, val=2, unseen=1)


class Stopping(Observer):
    """Stops a run as Ctrl-C does, after its first epoch."""

    @hookimpl
    def epoch_finished(self, epoch: int) -> None:
        if epoch == 1:
            signal.raise_signal(signal.SIGINT)


def one(boxes: list[list[float]], size: tuple[int, int], *, is_crowd: bool = False) -> Annotations:
    count = len(boxes)
    record = ImageRecord(
        path=Path("one.png"),
        image_id=1,
        height=size[0],
        width=size[1],
        boxes_N4=np.array(boxes, np.float32).reshape(-1, 4),
        labels_N=np.zeros(count, np.int64),
        is_crowd_N=np.full(count, is_crowd),
        area_N=np.ones(count, np.float32),
        annotation_ids_N=np.arange(count),
    )
    return Annotations(("thing",), (record,), (), (1,), Path())


def test_sizes_are_those_on_the_canvas() -> None:
    # 200 pixels become 640.
    sizes = box_sizes(one([[0, 0, 100, 50], [0, 0, 0.5, 0.5]], (100, 200)), 640)

    assert sizes.tolist() == [[320, 160]]


def test_crowds_are_not_measured() -> None:
    assert box_sizes(one([[0, 0, 100, 50]], (100, 200), is_crowd=True), 640).shape == (0, 2)


def test_head_without_anchors_is_told() -> None:
    with pytest.raises(RecipeError, match="the head 'decoupled' has no anchors"):
        head_anchors(load_recipe("yolox-s"))


def test_anchors_that_serve_are_kept(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = fit("demo", data=data, out=tmp_path / "run", overrides={**SMALL, HEAD_ANCHORS: SERVING})

    assert "; kept" in capsys.readouterr().err
    assert run.recipe.tables["head"]["anchors"] == SERVING


def test_anchors_that_do_not_serve_are_searched_and_stay_with_the_run(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = fit("demo", data=data, out=tmp_path / "run", overrides=SMALL)

    assert "evolved-kmeans found others" in capsys.readouterr().err
    found = [[list(pair) for pair in level] for level in run.recipe.tables["head"]["anchors"]]
    assert found != WRONG
    assert json.loads((run.directory / ORIGINS).read_text())[HEAD_ANCHORS] == FOUND
    for path in (run.best, run.last):
        of_artifact = read_artifact(path).recipe.tables["head"]["anchors"]
        assert [[list(pair) for pair in level] for level in of_artifact] == found


def test_run_that_goes_on_keeps_the_anchors_it_began_with(data: Path, tmp_path: Path) -> None:
    overrides = {**SMALL, "train.epochs": 2}
    whole = fit("demo", data=data, out=tmp_path / "whole", overrides=overrides)
    halved = fit("demo", data=data, out=tmp_path / "halved", overrides=overrides, observers=[Stopping()])
    assert halved.status == "interrupted"

    resumed = resume(tmp_path / "halved")

    assert resumed.recipe.tables["head"]["anchors"] == whole.recipe.tables["head"]["anchors"]
    ours, theirs = read_artifact(resumed.last).tensors, read_artifact(whole.last).tensors
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_weights_to_start_from_keep_their_anchors(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = fit("demo", data=data, out=tmp_path / "first", overrides={**SMALL, "anchors.min_recall": 0.0})
    capsys.readouterr()

    second = fit("demo", data=data, out=tmp_path / "second", overrides={**SMALL, "train.init_from": str(first.best)})

    assert "kept all the same, because the head of" in capsys.readouterr().err
    assert second.recipe.tables["head"]["anchors"] == first.recipe.tables["head"]["anchors"]


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["anchors", *(str(each) for each in arguments)])


def test_command_measures_searches_and_writes_a_recipe(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine.toml"
    quick = ("--set", "anchors.use=evolved-kmeans", "--set", "anchors.generations=20")

    result = run("yolov7-tiny", "--data", data, "-o", out, *quick, "--json")

    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["after"]["fitness"] >= told["before"]["fitness"]
    assert told["written"] == str(out)
    recipe = load_recipe(out)
    assert [list(map(list, level)) for level in recipe.tables["head"]["anchors"]] == told["after"]["anchors"]
    assert recipe.tables["backbone"] == load_recipe("yolov7-tiny").tables["backbone"]


def test_command_leaves_a_file_that_exists_alone(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine.toml"
    out.write_text("# mine")

    result = run("yolov7-tiny", "--data", data, "-o", out)

    assert result.exit_code == 2
    assert "--force" in result.output
    assert out.read_text() == "# mine"


def test_command_refuses_a_head_without_anchors(data: Path) -> None:
    result = run("yolox-s", "--data", data)

    assert result.exit_code == 2
    assert "has no anchors" in result.output
