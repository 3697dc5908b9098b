"""Evaluators that are wrong in one way each, which one check of the kit alone sees.

They spoil the numbers of a right one, of the bundled plugins, which the tests may know.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

from detloom.data.records import Annotations
from detloom.interfaces import Evaluator, Metrics
from detloom.structures import Detections
from detloom.testing import check_component, evaluators
from detloom_plugins.pycocotools_evaluator import PycocotoolsEvaluator

Caught = Callable[[type[Any]], dict[str, str]]
Found = Mapping[int, Detections]


class PlainEvaluator(PycocotoolsEvaluator):
    """Returns the numbers of pycocotools."""

    def __init__(self, annotations: Annotations, *, strict: bool = True) -> None:
        super().__init__(self.read(annotations))
        self.strict = strict

    def read(self, annotations: Annotations) -> Annotations:
        return annotations


class PositionalEvaluator(PlainEvaluator):
    """Takes its setting by position as well."""

    def __init__(self, annotations: Annotations, strict: bool = True) -> None:
        super().__init__(annotations, strict=strict)


class TerseEvaluator(PlainEvaluator):
    """Gives no AP50 of the classes."""

    def evaluate(self, detections: Found) -> Metrics:
        found = super().evaluate(detections)
        return replace(found, per_class={name: {"AP": row["AP"]} for name, row in found.per_class.items()})


class StingyEvaluator(PlainEvaluator):
    """Has an AR100 of nine tenths."""

    def evaluate(self, detections: Found) -> Metrics:
        found = super().evaluate(detections)
        return replace(found, summary={**found.summary, "AR100": 0.9 * found.summary["AR100"]})


class PresentEvaluator(PlainEvaluator):
    """Has an AP of NaN where no image is mentioned."""

    def evaluate(self, detections: Found) -> Metrics:
        found = super().evaluate(detections)
        return found if detections else replace(found, summary={**found.summary, "AP": float("nan")})


class ZeroEvaluator(PlainEvaluator):
    """Has an APl of 0 where nothing is large."""

    def evaluate(self, detections: Found) -> Metrics:
        found = super().evaluate(detections)
        return replace(found, summary={**found.summary, "APl": 0.0})


class UnrankedEvaluator(PlainEvaluator):
    """Does not rank detections by their scores."""

    def evaluate(self, detections: Found) -> Metrics:
        equal = {i: replace(each, scores_N=torch.full_like(each.scores_N, 0.5)) for i, each in detections.items()}
        if 1 in equal and len(equal[1]) == 2 and equal[1].boxes_N4[:, 0].max() == 200:
            first = equal[1].boxes_N4[:, 0].argsort()
            equal[1] = replace(equal[1], boxes_N4=equal[1].boxes_N4[first], labels_N=equal[1].labels_N[first])
        return super().evaluate(equal)


class LooseEvaluator(PlainEvaluator):
    """Has the AP at an overlap of 0.5 for that at 0.75."""

    def evaluate(self, detections: Found) -> Metrics:
        found = super().evaluate(detections)
        return replace(found, summary={**found.summary, "AP75": found.summary["AP50"]})


class CrowdlessEvaluator(PlainEvaluator):
    """Takes crowds for objects."""

    def read(self, annotations: Annotations) -> Annotations:
        images = [replace(each, is_crowd_N=each.is_crowd_N & False) for each in annotations.images]
        return replace(annotations, images=tuple(images))


class MemorisingEvaluator(PlainEvaluator):
    """Halves its numbers once it was given nothing."""

    emptied = False

    def evaluate(self, detections: Found) -> Metrics:
        found = super().evaluate(detections)
        worse = replace(found, summary={name: value / 2 for name, value in found.summary.items()})
        found, self.emptied = (worse if self.emptied else found), not detections
        return found


class IgnoringEvaluator(PlainEvaluator):
    """Leaves out images that are not in the split."""

    def evaluate(self, detections: Found) -> Metrics:
        return super().evaluate({index: each for index, each in detections.items() if index < 4})


WRONG: dict[str, tuple[type[Evaluator], str]] = {
    "settings_are_keyword_only_and_typed": (PositionalEvaluator, "every setting is keyword-only"),
    "all_numbers_have_their_names": (TerseEvaluator, "give AP and AP50 of every class"),
    "true_boxes_have_a_precision_of_1": (StingyEvaluator, "AR100 of the annotated boxes themselves is 0.9"),
    "nothing_found_has_a_precision_of_0": (PresentEvaluator, "AP of no detections is nan"),
    "what_cannot_be_measured_is_nan": (ZeroEvaluator, "summary['APl'] is 0.0"),
    "surest_mistakes_cost_most": (UnrankedEvaluator, "ranked by score"),
    "shifted_boxes_count_at_small_overlaps_alone": (LooseEvaluator, "AP75 1"),
    "boxes_in_a_crowd_cost_nothing": (CrowdlessEvaluator, "leave out what lies in is_crowd regions"),
    "same_detections_have_the_same_metrics": (MemorisingEvaluator, "remember none of them"),
    "detections_of_no_image_are_refused": (IgnoringEvaluator, "raise a DataError that says which"),
}


def test_right_evaluator_passes_all() -> None:
    check_component(PlainEvaluator)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_evaluator_is_caught_by_its_check_alone_and_told_why(name: str, caught: Caught) -> None:
    cls, message = WRONG[name]

    broken = caught(cls)

    assert set(broken) == {name}
    assert message in broken[name]


def test_every_check_of_evaluators_has_a_wrong_one() -> None:
    assert [check.__name__ for check in evaluators.CHECKS] == list(WRONG)
