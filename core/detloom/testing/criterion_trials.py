"""Ways to ask a criterion for losses, on several kinds of head, and what is done to its inputs.

Shape letters: see ``batches``.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from detloom.errors import PluginError
from detloom.interfaces import Criterion
from detloom.results import check_losses
from detloom.structures import Assignment, Predictions, Targets
from detloom.testing.batches import (
    LAYOUTS,
    NUM_CLASSES,
    Layout,
    map_predictions,
    random_targets,
    some_matches,
    targets_of,
    twice,
    with_boxes_of_distributions,
)
from detloom.testing.construction import Build, demand
from detloom.testing.drawing import HEADS, PICTURES, Pictures, counted, holds_for_drawn, num_classes_of, told

__all__ = [
    "Trial",
    "demand_equal",
    "demand_finite",
    "demand_of_matches",
    "gradients_of",
    "learned",
    "learning",
    "total_of",
    "trials_of",
    "with_learned",
    "with_value",
]


@dataclass(frozen=True, slots=True)
class Trial:
    """A criterion on one kind of head, with ordinary matches."""

    criterion: Criterion
    layout: Layout
    predictions: Predictions
    assignment: Assignment
    targets: Targets

    def __str__(self) -> str:
        """Return where a complaint lies."""
        return f"losses on {self.layout}"

    def losses(self) -> Mapping[str, Tensor]:
        """Return what the criterion returns."""
        return self.criterion.losses(self.predictions, self.assignment, self.targets)

    def is_free_BP(self) -> Tensor:
        """Return whether a prior has no match."""
        free_BP = torch.ones(self.predictions.boxes_BP4.shape[:2], dtype=torch.bool)
        free_BP[self.assignment.image_M, self.assignment.prior_M] = False
        return free_BP

    def ignoring(self, ignored_BP: Tensor) -> "Trial":
        """Return the same with priors marked as ignored."""
        return replace(self, assignment=replace(self.assignment, ignored_BP=ignored_BP))

    def twice(self) -> "Trial":
        """Return the same batch twice over, as one."""
        given = self.assignment
        return replace(
            self,
            predictions=map_predictions(self.predictions, lambda values: torch.cat((values, values))),
            assignment=Assignment(
                torch.cat((given.image_M, given.image_M + self.targets.num_images)),
                torch.cat((given.prior_M, given.prior_M)),
                torch.cat((given.target_M, given.target_M + self.targets.num_targets)),
                torch.cat((given.quality_M, given.quality_M)),
            ),
            targets=twice(self.targets),
        )

    def tensors(self) -> list[Tensor]:
        """Return all that could be changed in place."""
        given, targets = self.assignment, self.targets
        names = ("boxes_BP4", "class_logits_BPC", "objectness_BP", "distribution_BP4R")
        found = [getattr(self.predictions, name) for name in names]
        found += [given.image_M, given.prior_M, given.target_M, given.quality_M, targets.boxes_T4, targets.labels_T]
        return [each for each in found if each is not None]


def trials_of(build: Build) -> Iterator[Trial]:
    """Yield a trial on every kind of head that is served."""
    for layout in _served(build, LAYOUTS):
        yield _trial(build, layout, random_targets((4, 5)))


def _served(build: Build, layouts: Sequence[Layout]) -> list[Layout]:
    criterion: Criterion = build()
    return [layout for layout in layouts if criterion.objection(layout.traits()) is None]


def _trial(build: Build, layout: Layout, targets: Targets, *, num_classes: int = NUM_CLASSES, each: int = 3) -> Trial:
    predictions = layout.predictions(targets.num_images, seed=1, num_classes=num_classes)
    return Trial(build(), layout, predictions, some_matches(predictions, targets, each=each), targets)


@dataclass(frozen=True, slots=True)
class DrawnMatches:
    """A kind of head, objects, and the nearest priors of each that learn it."""

    layout: Layout
    pictures: Pictures
    more_classes: int
    each: int

    @property
    def where(self) -> str:
        """Return what is asked."""
        return f"losses on {self.layout}"

    def __str__(self) -> str:
        """Return it in words."""
        classes = counted(num_classes_of(self.pictures, self.more_classes), "class", "classes")
        priors = "prior" if self.each == 1 else f"{self.each} priors"
        return f"{classes}, every object learned by the nearest {priors}, {told(self.pictures)}"

    def trial(self, build: Build) -> Trial:
        """Return what the criterion is given, made anew."""
        num_classes = num_classes_of(self.pictures, self.more_classes)
        return _trial(build, self.layout, targets_of(self.pictures), num_classes=num_classes, each=self.each)


def demand_of_matches(
    build: Build, demanded: Callable[[Trial], None], *, single_class: bool = False, fewest: int = 1
) -> None:
    """Demand something of matches that are drawn, and of fixed ones on every kind of head.

    Args:
        build: What builds the criterion.
        demanded: Raises an AssertionError where it is not met.
        single_class: Whether there may be one class alone.
        fewest: How many priors learn an object at least.
    """
    served = _served(build, HEADS)
    cases = st.builds(
        DrawnMatches,
        layout=st.sampled_from(served),
        pictures=PICTURES["ordinary"] | PICTURES["none in some images"],
        more_classes=st.integers(0 if single_class else 1, 3),
        each=st.integers(fewest, 4),
    )
    if served:
        holds_for_drawn(cases, lambda case: demanded(case.trial(build)))
    for trial in trials_of(build):
        demanded(trial)


def demand_finite(trial: Trial, how: str = "") -> None:
    """Demand named finite numbers."""
    where = f"{trial} {how}".strip()
    losses = trial.losses()
    try:
        check_losses(losses, trial.criterion)
    except PluginError as error:
        raise AssertionError(f"{where}: {error}") from error
    for name, loss in losses.items():
        demand(loss.isfinite(), f"{where}: '{name}' is {loss.item()}; divide by a count of at least 1")


def demand_equal(first: Trial, second: Trial, complaint: str) -> None:
    """Demand the same losses of both."""
    other = second.losses()
    for name, loss in first.losses().items():
        demand(torch.allclose(loss, other[name], rtol=1e-6, atol=0), f"{first}: '{name}' {complaint}")


def total_of(losses: Mapping[str, Tensor]) -> Tensor:
    """Return the sum of all losses."""
    return torch.stack(list(losses.values())).sum()


def learned(predictions: Predictions) -> dict[str, Tensor]:
    """Return what a head learns; where sides are distributions, boxes follow from these."""
    names = ("class_logits_BPC", "objectness_BP", "distribution_BP4R")
    found = {name: getattr(predictions, name) for name in names if getattr(predictions, name) is not None}
    return found if "distribution_BP4R" in found else {"boxes_BP4": predictions.boxes_BP4, **found}


def with_learned(predictions: Predictions, changed: dict[str, Any]) -> Predictions:
    """Return predictions with other values of what a head learns, and boxes that follow from these."""
    return with_boxes_of_distributions(replace(predictions, **changed))


def learning(predictions: Predictions) -> Predictions:
    """Return the same predictions with gradients to all that a head learns."""
    leaves = {name: values.clone().requires_grad_() for name, values in learned(predictions).items()}
    return with_learned(predictions, leaves)


def gradients_of(total: Tensor, predictions: Predictions) -> dict[str, Tensor | None]:
    """Return the gradient of each that a head learns, or None where none arrives."""
    inputs = learned(predictions)
    return dict(zip(inputs, torch.autograd.grad(total, list(inputs.values()), allow_unused=True), strict=True))


def with_value(values: Tensor, where_BP: Tensor, value: float) -> Tensor:
    """Return the values with another one at some priors."""
    changed = values.clone()
    changed[where_BP] = value
    return changed
