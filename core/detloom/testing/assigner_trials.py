"""Ways to ask an assigner for matches, on several kinds of head, and how results are compared.

Shape letters: see ``batches``.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from detloom.errors import PluginError
from detloom.interfaces import Assigner
from detloom.results import check_assignment
from detloom.structures import Assignment
from detloom.testing.batches import EDGES, LAYOUTS, Batch, Layout, random_targets, rows_of, targets_of
from detloom.testing.construction import Build, demand

__all__ = ["Trial", "demand_probabilities", "demand_same", "edge_batch", "ordinary_batch", "tensors_of", "trials_of"]

# Qualities and costs may be summed in another order.
TOLERANCE = 1e-5


@dataclass(frozen=True, slots=True)
class Trial:
    """One way to ask for matches on one kind of head.

    Attributes:
        way: What is called, in words.
        is_auxiliary: Whether matches are those of the auxiliary predictions.
    """

    assigner: Assigner
    layout: Layout
    way: str
    is_auxiliary: bool

    def __str__(self) -> str:
        """Return where a complaint lies."""
        return f"{self.way} on {self.layout}"

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
        assigner = build()
        relaxed = assigner.relaxed()
        for of, name in ((assigner, ""), (relaxed, "relaxed().")):
            if isinstance(of, Assigner) and of.objection(layout.traits(one_to_one=of.one_to_one)) is None:
                yield Trial(of, layout, f"{name}assign", is_auxiliary=False)
                if not name:
                    yield Trial(of, layout, "assign_auxiliary", is_auxiliary=True)


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
        values = (predictions.boxes_BP4, predictions.class_logits_BPC, predictions.objectness_BP)
        found += [each for each in values if each is not None]
        found += [priors.centers_P2, priors.sizes_P2, priors.strides_P, priors.level_P]
    return found
