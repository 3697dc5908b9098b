"""Checks of evaluators, on four pictures of two classes.

Shape letter: N boxes of one image.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from hypothesis import strategies as st

from detloom.data.records import Annotations, ImageRecord
from detloom.errors import DetloomError
from detloom.interfaces import Evaluator, Metrics
from detloom.structures import Detections
from detloom.testing.batches import Row
from detloom.testing.construction import Build, demand
from detloom.testing.construction import check_signature as check_constructor
from detloom.testing.drawing import PICTURES, Pictures, holds_for_drawn, told

__all__ = ["CHECKS"]

SUMMARY = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
NAMES = ("cat", "dog", "bird")
SIZE = (240, 320)

# Small and middling objects; none is large, and there is no bird.
TRUTH: tuple[tuple[Row, ...], ...] = (
    ((0, 10, 10, 30, 40), (1, 100, 50, 180, 120)),
    ((0, 50, 60, 110, 140),),
    ((1, 5, 5, 25, 30), (1, 60, 60, 80, 90), (0, 200, 100, 260, 160)),
    (),
)
CROWD: Row = (0, 120, 10, 300, 100)


def settings_are_keyword_only_and_typed(build: Build) -> None:
    """The annotations come first; a recipe's table is the keyword arguments."""
    check_constructor(build, ("annotations",))


def all_numbers_have_their_names(build: Build) -> None:
    """Tables, plots and the best epoch are read by these names."""
    found = _metrics(build, _true())
    missing = [name for name in SUMMARY if name not in found.summary]
    demand(not missing, f"summary has no {', '.join(missing)}; it holds COCO's twelve numbers: {', '.join(SUMMARY)}")
    for name in NAMES:
        row = found.per_class.get(name, {})
        demand({"AP", "AP50"} <= set(row), f"per_class['{name}'] is {dict(row)}; give AP and AP50 of every class")


def true_boxes_have_a_precision_of_1(build: Build) -> None:
    """Nothing can be better."""

    def demanded(case: DrawnTruth) -> None:
        found = _metrics(build, _all_of(case.pictures), case.pictures)
        for name in ("AP", "AP50", "AP75", "AR100"):
            _demand_one(name, found.summary[name])

    holds_for_drawn(DRAWN_TRUTH, demanded)
    found = _metrics(build, _true())
    for name in ("AP", "AP50", "AP75", "APs", "APm", "AR100"):
        _demand_one(name, found.summary[name])


def nothing_found_has_a_precision_of_0(build: Build) -> None:
    """Pictures without detections, or without mention, are missed."""

    def demanded(case: DrawnTruth) -> None:
        for what, detections in (("empty", {i: _found([]) for i in range(len(case.pictures))}), ("no", {})):
            value = _metrics(build, detections, case.pictures).summary["AP"]
            demand(value == 0, f"AP of {what} detections is {value}, not 0; objects that are not found are missed")

    holds_for_drawn(DRAWN_TRUTH, demanded)
    demanded(DrawnTruth(TRUTH))


def what_cannot_be_measured_is_nan(build: Build) -> None:
    """There is no bird and nothing large, which is neither a success nor a failure."""
    found = _metrics(build, _true())
    values = {"summary['APl']": found.summary["APl"], "per_class['bird']['AP']": found.per_class["bird"]["AP"]}
    for name, value in values.items():
        demand(math.isnan(value), f"{name} is {value}, but nothing of the kind is annotated; give NaN")


def surest_mistakes_cost_most(build: Build) -> None:
    """Precision falls by wrong boxes that are surer than right ones, and not by those that are less sure."""
    wrong: Row = (0, 200, 180, 240, 220)
    values = {}
    for name, score in (("surer", 0.95), ("less sure", 0.05)):
        detections = dict(_true())
        detections[1] = _found([*TRUTH[1], wrong], [0.9, score])
        values[name] = _metrics(build, detections).summary["AP"]
    demand(
        values["surer"] < values["less sure"] - 0.05,
        f"a wrong box gives an AP of {values['surer']:.4g} where it is surer than the right ones, of "
        f"{values['less sure']:.4g} where it is less sure; detections are ranked by score",
    )
    demand(math.isclose(values["less sure"], 1, abs_tol=1e-6), "a wrong box after all right ones costs precision")


def shifted_boxes_count_at_small_overlaps_alone(build: Build) -> None:
    """Average precision is over overlaps from 0.5 to 0.95."""
    # Boxes of the truth, moved by a seventh of their width: an overlap of 0.75 at 6 / 8.
    moved = {
        i: _found([(c, a + (x - a) / 5, b, x + (x - a) / 5, y) for c, a, b, x, y in rows])
        for i, rows in enumerate(TRUTH)
    }
    found = _metrics(build, moved).summary
    demand(
        found["AP50"] == 1 and found["AP75"] == 0 and 0 < found["AP"] < 1,
        f"boxes that overlap by 2/3 have AP50 {found['AP50']:.4g}, AP75 {found['AP75']:.4g}, AP {found['AP']:.4g}; "
        "they are right up to 0.65 of the overlaps, 1, 0 and about 0.4",
    )


def boxes_in_a_crowd_cost_nothing(build: Build) -> None:
    """Crowd regions are neither found nor missed."""
    detections = dict(_true())
    detections[1] = _found([*TRUTH[1], (0, 130, 20, 170, 60)], [0.8, 0.99])
    value = _metrics(build, detections, crowd=True).summary["AP"]
    demand(
        math.isclose(value, 1, abs_tol=1e-6),
        f"AP is {value:.4g} with a box inside a crowd region, else right; leave out what lies in is_crowd regions, "
        "and the regions",
    )


def same_detections_have_the_same_metrics(build: Build) -> None:
    """An evaluator serves all epochs of a training."""
    evaluator: Evaluator = build(_annotations())
    first = evaluator.evaluate(_true())
    evaluator.evaluate({})
    again = evaluator.evaluate(_true())
    same = all(_same(first.summary[name], again.summary[name]) for name in SUMMARY)
    demand(same, "a second evaluation of the same detections has other metrics; remember none of them")


def detections_of_no_image_are_refused(build: Build) -> None:
    """They are another split's, and would be counted nowhere."""
    try:
        _metrics(build, {len(TRUTH): _found(TRUTH[0])})
    except DetloomError:
        return
    raise AssertionError(
        f"detections of image {len(TRUTH)} of {len(TRUTH)} are evaluated in silence; raise a DataError that says which"
    )


CHECKS: tuple[Callable[[Build], None], ...] = (
    settings_are_keyword_only_and_typed,
    all_numbers_have_their_names,
    true_boxes_have_a_precision_of_1,
    nothing_found_has_a_precision_of_0,
    what_cannot_be_measured_is_nan,
    surest_mistakes_cost_most,
    shifted_boxes_count_at_small_overlaps_alone,
    boxes_in_a_crowd_cost_nothing,
    same_detections_have_the_same_metrics,
    detections_of_no_image_are_refused,
)


@dataclass(frozen=True, slots=True)
class DrawnTruth:
    """The objects of each picture."""

    pictures: Pictures

    @property
    def where(self) -> str:
        """Return what is asked."""
        return "evaluate"

    def __str__(self) -> str:
        """Return it in words."""
        return told(self.pictures, SIZE)


DRAWN_TRUTH = st.builds(DrawnTruth, PICTURES["ordinary"] | PICTURES["none in some images"])


def _demand_one(name: str, value: float) -> None:
    demand(math.isclose(value, 1, abs_tol=1e-6), f"{name} of the annotated boxes themselves is {value}, not 1")


def _annotations(truth: Pictures = TRUTH, *, crowd: bool = False) -> Annotations:
    images = []
    for index, rows in enumerate(truth):
        every = [*rows, CROWD] if crowd and index == 1 else list(rows)
        table_N5 = np.array(every, np.float32).reshape(-1, 5)
        boxes_N4 = table_N5[:, 1:]
        is_crowd_N = np.arange(len(every)) >= len(rows)
        images.append(
            ImageRecord(
                path=Path(f"{index}.jpg"),
                image_id=index + 7,
                height=SIZE[0],
                width=SIZE[1],
                boxes_N4=boxes_N4,
                labels_N=table_N5[:, 0].astype(np.int64),
                is_crowd_N=is_crowd_N,
                area_N=(boxes_N4[:, 2] - boxes_N4[:, 0]) * (boxes_N4[:, 3] - boxes_N4[:, 1]),
                annotation_ids_N=np.arange(1, len(every) + 1, dtype=np.int64),
            )
        )
    return Annotations(NAMES, tuple(images), (), tuple(range(1, len(NAMES) + 1)), Path("kit"))


def _found(rows: Sequence[Row], scores: Sequence[float] = ()) -> Detections:
    """Return detections, best first."""
    table_N5 = torch.tensor(rows, dtype=torch.float32).reshape(-1, 5)
    scores_N = torch.tensor(list(scores) or [0.9 - 0.1 * i for i in range(len(rows))], dtype=torch.float32)
    order_N = scores_N.argsort(descending=True)
    return Detections(table_N5[order_N, 1:], scores_N[order_N], table_N5[order_N, 0].long(), NAMES, SIZE)


def _all_of(pictures: Pictures) -> dict[int, Detections]:
    return {index: _found(rows) for index, rows in enumerate(pictures)}


def _true() -> dict[int, Detections]:
    return _all_of(TRUTH)


def _metrics(
    build: Build, detections: Mapping[int, Detections], truth: Pictures = TRUTH, *, crowd: bool = False
) -> Metrics:
    evaluator: Evaluator = build(_annotations(truth, crowd=crowd))
    return evaluator.evaluate(detections)


def _same(first: float, second: float) -> bool:
    return first == second or (math.isnan(first) and math.isnan(second))
