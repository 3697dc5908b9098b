"""From a recipe and a data set to a run, with real components on a few small pictures."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from narrow_recipe import NARROW
from PIL import Image

import detloom
from detloom.durable import read_tensors
from detloom.engine.fit import fit, resume
from detloom.engine.run import Run
from detloom.errors import ArtifactError, DataError, RecipeError
from detloom.hookspecs import hookimpl
from detloom.interfaces import Observer

SMALL: dict[str, Any] = {
    **NARROW,
    "data.image_size": 64,
    "data.workers": 0,
    "train.epochs": 2,
    "train.batch": 4,
    "train.nominal_batch": 4,
    "train.warmup_epochs": 0.5,
    "train.warmup_min_steps": 0,
    "train.log_every": 1,
}


@pytest.fixture(autouse=True)
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("data"), ("square", "bar"))


def written(folder: Path, names: tuple[str, ...]) -> Path:
    """Write twelve pictures of grey with a bright box in each, in COCO's format."""
    generator = np.random.default_rng(0)
    (folder / "annotations").mkdir()
    (folder / "images").mkdir()
    for split, count in (("train", 8), ("val", 4)):
        images, boxes = [], []
        for number in range(count):
            pixels = generator.integers(0, 90, (64, 64, 3), dtype=np.uint8)
            x, y, label = (int(each) for each in generator.integers((2, 2, 0), (30, 30, len(names))))
            width, height = (24, 24) if label == 0 else (30, 12)
            pixels[y : y + height, x : x + width] = 230
            Image.fromarray(pixels).save(folder / f"images/{split}{number}.png")
            images.append({"id": number, "file_name": f"{split}{number}.png", "height": 64, "width": 64})
            boxes.append(
                {
                    "id": number + 1,
                    "image_id": number,
                    "category_id": label + 1,
                    "iscrowd": 0,
                    "bbox": [x, y, width, height],
                    "area": width * height,
                }
            )
        categories = [{"id": index, "name": name} for index, name in enumerate(names, 1)]
        content = {"images": images, "annotations": boxes, "categories": categories}
        (folder / f"annotations/{split}.json").write_text(json.dumps(content))
    return folder


def small(**settings: Any) -> dict[str, Any]:
    return {**SMALL, **{name.replace("__", "."): value for name, value in settings.items()}}


def equal_weights(one: Path, other: Path) -> bool:
    ours, theirs = read_tensors(one)[0], read_tensors(other)[0]
    return ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in ours)


class StopAt(Observer):
    """Fails a run in the middle, as a power cut would."""

    def __init__(self, step: int) -> None:
        self.step = step

    @hookimpl
    def step_finished(self, step: int) -> None:
        if step == self.step:
            raise OSError("power cut")


def test_run_has_all_its_files_and_a_detector(data: Path, tmp_path: Path) -> None:
    overrides = small(observers__csv={}, **{"observers__early-stopping": {"patience": 5}})

    run = fit("yolov7-tiny", data=data, out=tmp_path / "run", overrides=overrides, progress=False)

    present = {path.name for path in run.directory.iterdir()}
    assert present >= {"recipe.toml", "origins.json", "run.json", "metrics.jsonl", "log.csv", "report"}
    assert present >= {"best.safetensors", "last.safetensors", "state.safetensors"}
    assert [record.epoch for record in run.history] == [1, 2]
    assert run.status == "finished"
    detector = detloom.load(run.best)
    assert detector.names == ("square", "bar")
    assert detector.recipe is not None
    assert detector.recipe.train.epochs == 2


def test_run_cut_off_resumes_to_the_same_weights(data: Path, tmp_path: Path) -> None:
    overrides = small(train__checkpoint_minutes=1e-9, train__seed=5)
    whole = fit("yolov7-tiny", data=data, out=tmp_path / "whole", overrides=overrides, progress=False)
    with pytest.raises(OSError, match="power cut"):
        fit("yolov7-tiny", data=data, out=tmp_path / "cut", overrides=overrides, progress=False, observers=[StopAt(3)])

    run = resume(tmp_path / "cut", progress=False)

    assert run.status == "finished"
    assert equal_weights(whole.last, run.last)
    assert equal_weights(whole.state, run.state)


def test_fine_tuning_takes_what_fits(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    first = fit("yolov7-tiny", data=data, out=tmp_path / "first", overrides=small(train__epochs=1), progress=False)
    other = written(tmp_path_factory.mktemp("other"), ("ball", "bat", "net"))
    capsys.readouterr()

    second = fit(
        "yolov7-tiny",
        data=other,
        out=tmp_path / "second",
        overrides=small(train__epochs=1, train__init_from=str(first.last), train__learning_rate=1e-9),
    )

    said = capsys.readouterr().err
    assert f"{first.last}: " in said
    assert "of another shape (head." in said
    name = "backbone." + next(name for name, _ in detloom.load(first.last).backbone.named_parameters())
    torch.testing.assert_close(read_tensors(second.last)[0][name], read_tensors(first.last)[0][name])


def test_frozen_neck_keeps_its_auxiliary_outputs(data: Path, tmp_path: Path) -> None:
    overrides = small(neck__auxiliary=[16, 16, 16], train__freeze=["neck"], train__epochs=1)

    run = fit("yolov7-tiny", data=data, out=tmp_path / "run", overrides=overrides, progress=False)

    assert any(name.startswith("auxiliary_") for name in run.history[0].losses)


def test_progress_is_plain_lines_away_from_a_terminal(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit("yolov7-tiny", data=data, out=tmp_path / "run", overrides=small(train__epochs=1))

    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"run {tmp_path / 'run'}: yolov7-tiny, 1 epoch\n")
    assert "\nepoch 1/1: box " in said.err


def test_what_would_come_after_the_end_is_told(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, swa in enumerate(({"start": 1000}, {"start": 2, "every": 1000})):
        overrides = small(train__snapshot_every=9, ema={"use": "swa", **swa})
        fit("yolov7-tiny", data=data, out=tmp_path / str(number), overrides=overrides)

        said = capsys.readouterr().err
        assert re.search(r"\[ema\] averages no two steps: the run has \d+ optimiser steps", said)
        assert "train.snapshot_every = 9 keeps nothing of a run of 2 epochs" in said

    fit("yolov7-tiny", data=data, out=tmp_path / "run", overrides=small())

    assert "averages no two steps" not in capsys.readouterr().err


def test_unknown_observer_is_told_before_anything_is_written(data: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"Did you mean 'csv'"):
        fit("yolov7-tiny", data=data, out=tmp_path / "run", overrides=small(observers__csvv={}))

    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        {"train.freeze": ["nekc"]},
        {"train.optimizer": "sdg"},
        {"train.init_from": "nowhere.safetensors"},
        {"ema.decay": 2.0},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_start_that_fails_does_not_refuse_the_next(data: Path, tmp_path: Path, wrong: dict[str, Any]) -> None:
    random_before = torch.get_rng_state()

    with pytest.raises((RecipeError, ArtifactError)):
        fit("yolov7-tiny", data=data, out=tmp_path / "run", overrides={**SMALL, **wrong}, progress=False)

    assert not (tmp_path / "run").exists()
    assert torch.get_rng_state().equal(random_before)


def test_weights_that_are_not_there_are_told_with_the_setting(data: Path, tmp_path: Path) -> None:
    overrides = {**SMALL, "train.init_from": "nowhere.safetensors"}

    with pytest.raises(ArtifactError, match=r"\[train\]: 'init_from' is nowhere.safetensors: there is no such file\n"):
        fit("yolov7-tiny", data=data, out=tmp_path / "run", overrides=overrides, progress=False)


def test_recipe_to_start_from_is_told_so_with_the_setting(data: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "my.toml"
    recipe.write_text('extends = "yolov7-tiny"\n')
    overrides = {**SMALL, "train.init_from": str(recipe)}

    with pytest.raises(
        ArtifactError, match=r"\[train\]: 'init_from' is \S+my\.toml: this is a recipe, and an artifact"
    ):
        fit("yolov7-tiny", data=data, out=tmp_path / "run", overrides=overrides, progress=False)


def test_missing_data_is_told_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        fit("yolov7-tiny", data=tmp_path / "nowhere", out=tmp_path / "run", overrides=SMALL)

    assert not (tmp_path / "run").exists()


def test_directory_of_another_run_is_not_touched(data: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text("mine")

    with pytest.raises(ArtifactError, match="not empty"):
        fit("yolov7-tiny", data=data, out=tmp_path, overrides=SMALL)

    assert (tmp_path / "recipe.toml").read_text() == "mine"


def test_random_numbers_of_the_process_go_on_as_before(data: Path, tmp_path: Path) -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)

    run: Run = fit("yolov7-tiny", data=data, out=tmp_path / "run", overrides=small(train__epochs=1), progress=False)

    assert run.status == "finished"
    assert torch.rand(3).equal(expected)
