"""The strategy: what it refuses, how its points are drawn, and a supernet of a real detector."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detloom import assemble, load_recipe
from detloom.detector import Detector
from detloom.errors import RecipeError
from detloom.recipe import Recipe
from detloom.search.ground import Ground
from detloom.search.space import Choice, Objective, Point, SearchSpace, State, Trial
from detloom_plugins.search.gradient import GradientSearch
from detloom_plugins.search.preparing import cost_of

AP = Objective("AP", is_maximised=True)
GFLOPS = Objective("gflops", is_maximised=False)
PARAMETERS = Objective("parameters", is_maximised=False)
NARROW: dict[str, Any] = {
    "backbone.stem": [[3, 2, 4], [3, 2, 4]],
    "backbone.hidden": [4, 4, 4, 4],
    "backbone.widths": [4, 4, 8, 8],
    "backbone.depth": 1,
    "neck.hidden": [4, 4, 4],
    "neck.widths": [4, 4, 8],
    "neck.outputs": [4, 4, 8],
    "neck.depth": 1,
    "data.image_size": 64,
    "data.train": "train",
    "data.val": "train",
    "train.batch": 2,
    "train.epochs": 1,
}


def space(*objectives: Objective, **choices: tuple[Any, ...]) -> SearchSpace:
    made = tuple(Choice(key.replace("_", "."), options) for key, options in choices.items())
    return SearchSpace(made, objectives or (AP,), trials=10)


def ground(searched: SearchSpace, folder: Path, *, seed: int = 0) -> Ground:
    def recipe(point: Point) -> Recipe:
        return load_recipe("yolov7-tiny-small-data", {**NARROW, **searched.overrides(point)})

    def build(point: Point) -> Detector:
        # As the core does: whatever was seeded before, the same point has the same weights.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe(point).train.seed)
            return assemble(recipe(point), names=("square",))

    return Ground(recipe, build, str(folder / "data"), folder / str(seed), seed)


@pytest.fixture
def squares(tmp_path: Path) -> Path:
    """Return a folder beside four pictures of a square each."""
    for name in ("images", "labels"):
        (tmp_path / "data" / name / "train").mkdir(parents=True)
    (tmp_path / "data" / "data.yaml").write_text("train: images/train\nval: images/train\nnames: [square]\n")
    for index in range(4):
        pixels_HWC = np.zeros((64, 64, 3), np.uint8)
        pixels_HWC[16:48, 16:48] = 200
        Image.fromarray(pixels_HWC).save(tmp_path / f"data/images/train/{index}.png")
        (tmp_path / f"data/labels/train/{index}.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    return tmp_path


def trial(number: int, point: Point, state: State = State.RUNNING) -> Trial:
    return Trial(number, point, state)


PREPARED = {"probabilities": {"backbone.depth": [0.9, 0.1], "backbone.activation": [0.2, 0.1, 0.7]}}


def test_the_most_probable_point_comes_first_and_then_each_once() -> None:
    searched = space(backbone_depth=(1, 2), backbone_activation=("relu", "silu", "relu6"))
    strategy = GradientSearch(searched)
    history: list[Trial] = []

    # What was refused, or runs still, is not proposed again.
    for number, state in enumerate([State.RUNNING, State.REFUSED, State.FAILED, *[State.RUNNING] * 3]):
        point = strategy.propose(history, PREPARED, torch.Generator().manual_seed(number))
        assert point is not None
        history.append(trial(number, point, state))

    assert history[0].point == (0, 2)
    assert len({each.point for each in history}) == 6
    assert strategy.propose(history, PREPARED, torch.Generator()) is None


@pytest.mark.parametrize(("trust", "share"), [(1.0, 0.9), (0.5, 0.75), (0.0, 0.5)])
def test_points_are_drawn_as_far_as_the_supernet_is_trusted(trust: float, share: float) -> None:
    searched = space(backbone_depth=(1, 2), backbone_activation=tuple("abc"), neck_activation=tuple(range(30)))
    strategy = GradientSearch(searched, trust=trust)
    prepared = {"probabilities": {**PREPARED["probabilities"], "neck.activation": [1 / 30] * 30}}
    history = [Trial(0, (0, 2, 0), State.RUNNING)]

    drawn = [strategy.propose(history, prepared, torch.Generator().manual_seed(seed)) for seed in range(400)]

    # The square root of 9 to 1 is 3 to 1; four deviations of a binomial are 0.1.
    assert np.mean([point is not None and point[0] == 0 for point in drawn]) == pytest.approx(share, abs=0.1)


def test_trials_teach_what_the_supernet_had_wrong() -> None:
    searched = space(backbone_depth=(1, 2), neck_activation=tuple(range(30)))
    strategy = GradientSearch(searched)
    prepared = {"probabilities": {"backbone.depth": [0.9, 0.1], "neck.activation": [1 / 30] * 30}}
    history = [Trial(n, (n % 2, n), State.FINISHED, (0.1 + 0.2 * (n % 2),)) for n in range(20)]

    drawn = [strategy.propose(history, prepared, torch.Generator().manual_seed(seed)) for seed in range(100)]

    assert np.mean([point is not None and point[0] == 1 for point in drawn]) > 0.9


def test_choices_that_are_no_part_of_a_network_are_objected_to() -> None:
    searched = space(backbone_depth=(1, 2), assigner=("yolov7", "simota"), train_learning_rate=(0.1, 0.01))

    objection = GradientSearch(searched).objection()

    assert objection is not None
    assert "'assigner', 'train.learning.rate': a supernet chooses between networks" in objection
    assert "accepted are choices in backbone, neck, head, scaling" in objection


def test_choices_of_the_network_are_not_objected_to() -> None:
    assert GradientSearch(space(backbone_depth=(1, 2), head_implicit=(True, False))).objection() is None


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"epochs": -1}, "epochs must be at least 1, or 0"),
        ({"warm_up": 1.0}, "warm_up is a share of the epochs"),
        ({"temperature": 0.05}, "temperatures must be above 0 and not rise"),
        ({"final_temperature": 0.0}, "temperatures must be above 0 and not rise"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"trust": 1.5}, "trust is a share of what the supernet has learned"),
        ({"trial_learning_rate": 0.0}, "trial_learning_rate must be above 0 and finite"),
        ({"cost_exponent": -1.0}, "cost_exponent at least 0"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(RecipeError, match=complaint):
        GradientSearch(space(backbone_depth=(1, 2)), **settings)


def test_costs_are_those_that_check_counts(tmp_path: Path) -> None:
    searched = space(AP, PARAMETERS, backbone_depth=(1, 2))
    made = ground(searched, tmp_path)

    cost = cost_of(searched, made, num_classes=1, exponent=0.07)

    assert cost is not None
    counts = [sum(each.numel() for each in made.build((place,)).fuse().parameters()) for place in (0, 1)]
    assert (cost.first, cost.differences) == (counts[0], {"backbone.depth": (0, counts[1] - counts[0])})


def test_there_is_no_cost_where_accuracy_alone_is_wanted(tmp_path: Path) -> None:
    searched = space(AP, backbone_depth=(1, 2))

    assert cost_of(searched, ground(searched, tmp_path), num_classes=1, exponent=0.07) is None


def test_an_option_that_cannot_be_built_is_named(squares: Path) -> None:
    searched = space(backbone_activation=("relu", "mish"))

    with pytest.raises(RecipeError, match=r"backbone.activation = 'mish' cannot be built") as caught:
        GradientSearch(searched).prepare(ground(searched, squares))

    assert "Take out an option" in str(caught.value)


@pytest.mark.slow
def test_a_supernet_of_a_detector_is_trained_once_and_says_what_it_took(squares: Path) -> None:
    searched = space(AP, GFLOPS, backbone_activation=("relu", "silu"), backbone_depth=(1, 2))
    strategy = GradientSearch(searched, epochs=2, warm_up=0.5)
    made = ground(searched, squares)

    prepared = strategy.prepare(made)

    assert json.loads(json.dumps(prepared)) == prepared
    assert {key: len(each) for key, each in prepared["probabilities"].items()} == {
        "backbone.activation": 2,
        "backbone.depth": 2,
    }
    assert (prepared["epochs"], prepared["trial_epochs"]) == (2, 1)
    assert prepared["seconds"] > 0
    assert prepared["cost"]["figure"] == "gflops"
    # The logits have moved, and by no more than Adam's steps.
    chances = [chance for each in prepared["probabilities"].values() for chance in each]
    assert all(0 < abs(chance - 0.5) < 0.02 for chance in chances)
    assert strategy.prepare(made)["probabilities"] == prepared["probabilities"]


@pytest.mark.slow
def test_another_seed_of_the_search_learns_otherwise(squares: Path) -> None:
    searched = space(backbone_activation=("relu", "silu"))
    strategy = GradientSearch(searched, epochs=1, warm_up=0)

    one, other = (strategy.prepare(ground(searched, squares, seed=seed))["probabilities"] for seed in (0, 1))

    assert one != other
