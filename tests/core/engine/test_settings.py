"""Values that no setting may have."""

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from detloom.data.settings import AugmentSettings, DataSettings
from detloom.engine.settings import PredictSettings, TrainSettings


@pytest.mark.parametrize(
    ("model", "values"),
    [
        (TrainSettings, {"learning_rate": float("inf")}),
        (TrainSettings, {"clip_norm": float("nan")}),
        (TrainSettings, {"fitness": {"AP": float("inf")}}),
        (AugmentSettings, {"mixup_beta": float("inf")}),
        (AugmentSettings, {"min_side": float("nan")}),
    ],
)
def test_numbers_that_are_not_finite_are_refused(model: type[BaseModel], values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="finite number"):
        model(**values)


@pytest.mark.parametrize("model", [TrainSettings, PredictSettings, DataSettings, AugmentSettings])
def test_every_table_refuses_them(model: type[BaseModel]) -> None:
    assert model.model_config.get("allow_inf_nan") is False
