"""From a space and its ground to the probabilities of its options: weave networks, count costs, train a supernet."""

from typing import Any

import torch

from detloom.assembly import check
from detloom.data.faults import refuse_faults
from detloom.data.splits import open_splits
from detloom.detector import Detector
from detloom.errors import RecipeError
from detloom.kinds import Kind
from detloom.search.figures import COUNTED
from detloom.search.ground import Ground
from detloom.search.space import Point, SearchSpace
from detloom_plugins.search.learning import LogitSettings, batches_of, learn, supernet_recipe
from detloom_plugins.search.supernet import Cost
from detloom_plugins.search.weaving import Woven, weave

__all__ = ["cost_of", "probabilities_of"]

CELLS = (2, 3)
"""Height and width, in cells of the coarsest level, of the picture that shapes are found with."""

GFLOPS = "gflops"


def probabilities_of(
    space: SearchSpace, ground: Ground, *, epochs: int, logits: LogitSettings, cost_exponent: float
) -> dict[str, Any]:
    """Return the probabilities of the options of each key, and what they took to learn, as JSON data.

    Args:
        space: Of choices that change the network.
        ground: Where its networks are built and trained.
        epochs: Of the supernet; 0: twice as many as a trial has.
        logits: How the logits learn.
        cost_exponent: Of the cost, by which the loss is multiplied.
    """
    first: Point = (0,) * len(space.choices)
    trial = ground.recipe(first)
    recipe = supernet_recipe(trial, epochs or 2 * trial.train.epochs)
    # What is learned here is a proposal, which another seed of the search makes otherwise.
    recipe = recipe.with_overrides({"train.seed": trial.train.seed + ground.seed})
    train, _ = open_splits(ground.data, recipe.data, recipe.tables.get(Kind.DATASET), seed=recipe.train.seed)
    refuse_faults((train,), skip_bad=recipe.data.skip_bad)
    cost = cost_of(space, ground, num_classes=len(train.names), exponent=cost_exponent)
    woven, stride = _woven(space, ground)
    supernet, run = learn(
        woven,
        batches_of(train, recipe, stride, epochs=2 * recipe.train.epochs),
        recipe=recipe,
        logits=logits,
        cost=cost,
        data=ground.data,
        names=train.names,
        directory=ground.folder / "supernet",
        progress=True,
    )
    return {
        "probabilities": supernet.probabilities(),
        "epochs": recipe.train.epochs,
        "trial_epochs": trial.train.epochs,
        "seconds": round(sum(record.seconds for record in run.history), 1),
        "places": {key: len(places) for key, places in woven.places.items()},
        "cost": None
        if cost is None
        else {
            "figure": _figure(space),
            "first": cost.first,
            "more": {key: list(each) for key, each in cost.differences.items()},
        },
    }


def cost_of(space: SearchSpace, ground: Ground, *, num_classes: int, exponent: float) -> Cost | None:
    """Return what networks cost, each key changed alone, or None where no objective is a cost.

    It is the first objective that can be counted; for what must be measured, as a latency, operations stand.
    """
    figure = _figure(space)
    if figure is None or not exponent:
        return None

    def counted(point: Point) -> float:
        return float(getattr(check(ground.recipe(point), num_classes=num_classes), COUNTED[figure]))

    first = counted((0,) * len(space.choices))
    differences = {
        choice.key: tuple(
            counted(_alone(space, number, place)) - first if place else 0.0 for place in range(len(choice.options))
        )
        for number, choice in enumerate(space.choices)
    }
    return Cost(first=first, differences=differences, exponent=exponent)


def _figure(space: SearchSpace) -> str | None:
    costs = [objective.name for objective in space.objectives if not objective.is_maximised]
    return next((name for name in costs if name in COUNTED), GFLOPS if costs else None)


def _alone(space: SearchSpace, number: int, place: int) -> Point:
    return tuple(place if each == number else 0 for each in range(len(space.choices)))


def _woven(space: SearchSpace, ground: Ground) -> tuple[Woven, int]:
    """Return the network of all options, and its largest stride."""

    def build(point: Point) -> Detector:
        try:
            return ground.build(point)
        except RecipeError as error:
            made = ", ".join(f"{key} = {value!r}" for key, value in space.overrides(point).items())
            raise RecipeError(
                f"[space]: a supernet is made of all options, and {made} cannot be built: {error}\n"
                "  Take out an option, or search with 'evolution', which leaves out what cannot be built."
            ) from error

    stride = build((0,) * len(space.choices)).max_stride
    example_BCHW = torch.rand(1, 3, CELLS[0] * stride, CELLS[1] * stride, generator=torch.Generator().manual_seed(0))
    choices = {choice.key: choice.options for choice in space.choices}
    return weave(choices, build, example_BCHW, seed=ground.seed, indivisible=("head",)), stride
