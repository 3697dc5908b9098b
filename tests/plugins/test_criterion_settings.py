"""Settings of criteria that would reward mistakes."""

from typing import Any

import pytest

from detloom.errors import RecipeError
from detloom_plugins.focal_criterion import FocalCriterion
from detloom_plugins.quality_focal_criterion import QualityFocalCriterion
from detloom_plugins.varifocal_criterion import VarifocalCriterion
from detloom_plugins.yolov7_criterion import Yolov7Criterion
from detloom_plugins.yolox_criterion import YoloxCriterion

GRADED = ("box", "classes", "distribution")


@pytest.mark.parametrize(
    ("criterion", "name"),
    [
        *(
            (criterion, name)
            for criterion in (FocalCriterion, QualityFocalCriterion, VarifocalCriterion)
            for name in GRADED
        ),
        *((YoloxCriterion, name) for name in ("box", "objectness", "classes", "l1")),
        *((Yolov7Criterion, name) for name in ("objectness", "classes", "objectness_positive_weight")),
    ],
)
def test_negative_gains_are_refused_by_name(criterion: Any, name: str) -> None:
    criterion(**{name: 0.0})

    with pytest.raises(RecipeError, match=f"^{name} must not be negative, got -0.1; 0 leaves it out"):
        criterion(**{name: -0.1})
