"""Ways to ask an assigner for matches, on several kinds of head, and how results are compared.

Shape letters: see ``batches``.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from hypothesis import strategies as st
from torch import Tensor

from detloom.errors import PluginError
from detloom.interfaces import Assigner
from detloom.results import check_assignment
from detloom.structures import Assignment
from detloom.testing.batches import EDGES, LAYOUTS, Batch, Layout, random_targets, rows_of, targets_of
from detloom.testing.construction import Build, demand
from detloom.testing.drawing import HEADS, PICTURES, Pictures, counted, holds_for_drawn, num_classes_of, told

__all__ = [
    "Trial",
    "demand_of_batches",
    "demand_of_drawn",
    "demand_probabilities",
    "demand_same",
    "edge_batch",
    "ordinary_batch",
    "tensors_of",
    "trials_of",
]

# Qualities and costs may be summed in another order.
TOLERANCE = 1e-5


@dataclass(frozen=True, slots=True)
class Trial:
    """One way to ask for matches on one kind of head.

    Attributes:
        way: What is called, in words.
        is_auxiliary: Whether matches are those of the auxiliary predictions.
        is_relaxed: Whether the relaxed form is asked.
    """

    assigner: Assigner
    layout: Layout
    way: str
    is_auxiliary: bool = False
    is_relaxed: bool = False

    def __str__(self) -> str:
        """Return where a complaint lies."""
        return f"{self.way} on {self.layout}"

    def anew(self, build: Build) -> "Trial":
        """Return the same with a new assigner."""
        assigner = build()
        return replace(self, assigner=assigner.relaxed() if self.is_relaxed else assigner)

    def matches(self, batch: Batch) -> Assignment:
        """Return what the assigner returns."""
        if self.is_auxiliary:
            return self.assigner.assign_auxiliary(batch.lead, batch.auxiliary, batch.targets)
        return self.assigner.assign(batch.lead, batch.targets)

    def valid_matches(self, batch: Batch) -> Assignment:
        """Return what the assigner returns, held against the contract."""
        result = self.matches(batch)
        learner = batch.auxiliary if self.is_auxiliary else batch.lead
        try:
            check_assignment(result, self.assigner, learner, batch.targets)
        except PluginError as error:
            raise AssertionError(f"{self}: {error}") from error
        return result


def trials_of(build: Build) -> Iterator[Trial]:
    """Yield every way on every kind of head that is served."""
    for layout in LAYOUTS:
        yield from _ways(build(), layout)


def _ways(assigner: Assigner, layout: Layout) -> Iterator[Trial]:
    relaxed = assigner.relaxed()
    if _serves(assigner, layout):
        yield Trial(assigner, layout, "assign")
        yield Trial(assigner, layout, "assign_auxiliary", is_auxiliary=True)
    if isinstance(relaxed, Assigner) and _serves(relaxed, layout):
        yield Trial(relaxed, layout, "relaxed().assign", is_relaxed=True)


def _serves(assigner: Assigner, layout: Layout) -> bool:
    return assigner.objection(layout.traits(one_to_one=assigner.one_to_one)) is None


@dataclass(frozen=True, slots=True)
class DrawnBatch:
    """A way to ask for matches, and what it is given.

    Attributes:
        pictures: The objects of each.
        more_classes: How many classes there are beyond those of the objects.
        without: Levels of the lead that have no auxiliary priors.
    """

    trial: Trial
    pictures: Pictures
    more_classes: int
    without: tuple[int, ...] = ()

    def __str__(self) -> str:
        """Return it in words."""
        lacking = f", no auxiliary priors on levels {list(self.without)}" if self.without else ""
        classes = counted(self.num_classes, "class", "classes")
        return f"{classes}{lacking}, {told(self.pictures)}"

    @property
    def where(self) -> Trial:
        """Return what is asked."""
        return self.trial

    @property
    def num_classes(self) -> int:
        """Return the number of classes."""
        return num_classes_of(self.pictures, self.more_classes)

    def batch(self) -> Batch:
        """Return what the assigner is given, made anew."""
        targets = targets_of(self.pictures)
        return self.trial.layout.batch(targets, without=self.without, num_classes=self.num_classes)


def demand_of_drawn(
    build: Build, pictures: str, demanded: Callable[[Trial, Batch], None], *, on_some_levels: bool = False
) -> None:
    """Demand something of batches that are drawn.

    Args:
        build: What builds the assigner.
        pictures: What kind of, see ``drawing.PICTURES``.
        demanded: Raises an AssertionError where it is not met.
        on_some_levels: Whether to ask for auxiliary matches alone, on some levels of the lead.
    """
    assigner = build()
    served = [
        trial
        for layout in HEADS
        for trial in _ways(assigner, layout)
        if not on_some_levels or (trial.is_auxiliary and trial.layout.levels > 1)
    ]

    @st.composite
    def cases(draw: st.DrawFn) -> DrawnBatch:
        trial = draw(st.sampled_from(served))
        without: tuple[int, ...] = ()
        if on_some_levels:
            first = draw(st.integers(0, trial.layout.levels - 1))
            last = draw(st.integers(first, trial.layout.levels - 1 if first else trial.layout.levels - 2))
            without = tuple(range(first, last + 1))
        return DrawnBatch(trial, draw(PICTURES[pictures]), draw(st.integers(0, 2)), without)

    if served:
        # A new assigner each time, so that what one remembers is not laid to another batch.
        holds_for_drawn(cases(), lambda case: demanded(case.trial.anew(build), case.batch()))


def demand_of_batches(build: Build, pictures: str, demanded: Callable[[Trial, Batch], None]) -> None:
    """Demand something of batches that are drawn, and of a fixed one on every kind of head."""
    demand_of_drawn(build, pictures, demanded)
    for trial in trials_of(build):
        demanded(trial, edge_batch(trial, pictures) if pictures in EDGES else ordinary_batch(trial))


def ordinary_batch(trial: Trial) -> Batch:
    """Return two images of 4 and 5 objects of many sizes, no two alike."""
    return trial.layout.batch(random_targets((4, 5)))


def edge_batch(trial: Trial, name: str) -> Batch:
    """Return a batch at the limits of what an assigner is given."""
    return trial.layout.batch(targets_of(EDGES[name]))


def demand_probabilities(trial: Trial, quality_M: Tensor) -> None:
    """Demand qualities in [0, 1], none of them NaN."""
    outside_M = quality_M[~((quality_M >= 0) & (quality_M <= 1))]
    demand(
        len(outside_M) == 0,
        f"{trial}: qualities {outside_M[:3].tolist()} for predictions without NaN; they must lie in [0, 1]",
    )


def demand_same(trial: Trial, first: Assignment, second: Assignment, what: str, advice: str) -> None:
    """Demand the same matches in any order, of the same qualities."""
    ours, theirs = rows_of(first), rows_of(second)
    other = {row[:3] for row in ours} ^ {row[:3] for row in theirs}
    demand(
        not other,
        f"{trial}: {what}: other matches; {len(other)} differ, as (image, prior, target) {sorted(other)[:1]}; {advice}",
    )
    qualities = zip(ours, theirs, strict=True) if len(ours) == len(theirs) else ()
    for mine, other_row in qualities:
        demand(
            abs(mine[3] - other_row[3]) <= TOLERANCE,
            f"{trial}: {what}: match {mine[:3]} has quality {other_row[3]}, not {mine[3]}; {advice}",
        )


def tensors_of(batch: Batch) -> list[Tensor]:
    """Return all that could be changed in place."""
    targets = batch.targets
    found = [targets.boxes_T4, targets.labels_T, targets.image_T]
    for predictions in (batch.lead, batch.auxiliary):
        priors = predictions.priors
        values = (
            predictions.boxes_BP4,
            predictions.class_logits_BPC,
            predictions.objectness_BP,
            predictions.distribution_BP4R,
        )
        found += [each for each in values if each is not None]
        found += [priors.centers_P2, priors.sizes_P2, priors.strides_P, priors.level_P]
    return found
