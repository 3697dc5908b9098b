"""Tables against signatures."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Literal

import pytest
from pydantic import BaseModel

from detloom.data.settings import AugmentSettings, DataSettings
from detloom.engine.settings import PredictSettings, TrainSettings
from detloom.interfaces import Assigner
from detloom.settings import setting_types, settings_model, validated


class Colour(StrEnum):
    RED = "red"


class Component:
    def __init__(
        self,
        inputs: object,
        *,
        needed: int,
        ratio: float = 0.5,
        sizes: tuple[int, ...] = (1,),
        colour: Colour = Colour.RED,
    ) -> None:
        self.settings = (inputs, needed, ratio, sizes, colour)


def test_toml_values_fit_the_signature_types() -> None:
    table = {"needed": 3, "ratio": 1, "sizes": [1, 2], "colour": "red"}

    settings, complaints = validated(settings_model(Component), table, "x")

    assert not complaints
    assert settings is not None
    assert settings.model_dump() == {"needed": 3, "ratio": 1.0, "sizes": (1, 2), "colour": Colour.RED}


def test_all_complaints_come_together_with_their_place() -> None:
    table = {"ration": 1.0, "sizes": [1, "two"], "colour": "blue"}

    _, complaints = validated(settings_model(Component), table, "my.toml [head]")

    assert all(complaint.startswith("my.toml [head]: ") for complaint in complaints)
    text = "\n".join(complaints)
    assert "'needed' is missing" in text
    assert "no setting is called 'ration'. Did you mean 'ratio'? Settings: colour, needed, ratio, sizes." in text
    assert "'sizes.1' is \"two\": it must be a whole number" in text
    assert '\'colour\' is "blue": it must be "red"' in text


def test_text_never_becomes_a_number() -> None:
    _, complaints = validated(settings_model(Component), {"needed": "3"}, "x")

    assert complaints == ["x: 'needed' is \"3\": it must be a whole number"]


def test_a_truth_value_is_no_number() -> None:
    _, complaints = validated(settings_model(Component), {"needed": True}, "x")

    assert len(complaints) == 1


def test_what_the_assembler_supplies_is_no_setting() -> None:
    _, complaints = validated(settings_model(Component), {"needed": 1, "inputs": 2}, "x")

    assert "no setting is called 'inputs'" in complaints[0]


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({"cache": "disk"}, '\'cache\' is "disk": it must be "auto", "ram" or "off"'),
        ({"workers": -1}, "'workers' is -1: it must be a whole number of at least 0, or \"auto\""),
    ],
)
def test_setting_of_several_forms_has_one_complaint_that_names_them(table: dict[str, object], expected: str) -> None:
    _, complaints = validated(DataSettings, table, "x")

    assert complaints == [f"x: {expected}"]


def test_limits_of_numbers_in_an_array_are_named() -> None:
    _, (complaint,) = validated(DataSettings, {"image_size": [64, "big"]}, "x")

    limits = "a whole number of at least 32 and at most 8192"
    assert complaint == f"x: 'image_size' is [64, \"big\"]: it must be {limits}, or an array of 2, each {limits}"


def test_unknown_key_of_a_table_is_suggested() -> None:
    _, complaints = validated(TrainSettings, {"fitness": {"AP51": 1.0}}, "x")

    assert len(complaints) == 1
    assert complaints[0].startswith("x: 'fitness' has no 'AP51'. Did you mean 'AP75'? Known: AP, AP50, AP75,")


@pytest.mark.parametrize(
    ("model", "table", "expected"),
    [
        (PredictSettings, {"score": 2}, "'score' is 2: it must be a number of at least 0 and at most 1"),
        (PredictSettings, {"score": "x"}, "'score' is \"x\": it must be a number of at least 0 and at most 1"),
        (PredictSettings, {"batch": 0}, "'batch' is 0: it must be a whole number of at least 1"),
        (PredictSettings, {"fuse": 1}, "'fuse' is 1: it must be true or false"),
        (DataSettings, {"holdout": 1.0}, "'holdout' is 1.0: it must be a number of at least 0 and less than 1"),
        (DataSettings, {"train": 3}, "'train' is 3: it must be text"),
        (AugmentSettings, {"max_aspect": 1}, "'max_aspect' is 1: it must be a number of more than 1"),
        (AugmentSettings, {"scale": float("nan")}, "'scale' is NaN: it must be a number of at least 0 and less than 1"),
        (
            AugmentSettings,
            {"mixup_beta": float("inf")},
            "'mixup_beta' is Infinity: it must be a number of more than 0, and finite",
        ),
        (AugmentSettings, {"extra": 3}, "'extra' is 3: it must be an array of tables with `use`"),
        (AugmentSettings, {"extra": [{"use": 3}]}, "'extra.0.use' is 3: it must be text"),
        (AugmentSettings, {"extra": [{}]}, "'extra.0.use' is missing and has no default; set it"),
        (TrainSettings, {"freeze": "x"}, "'freeze' is \"x\": it must be an array of text"),
        (TrainSettings, {"fitness": {"AP": "x"}}, "'fitness.AP' is \"x\": it must be a number"),
        (TrainSettings, {"init_from": 3}, "'init_from' is 3: it must be text"),
        (TrainSettings, {"decay_epochs": [3, 1.5]}, "'decay_epochs.1' is 1.5: it must be a whole number"),
    ],
)
def test_complaints_are_in_the_words_of_recipes(
    model: type[BaseModel], table: dict[str, object], expected: str
) -> None:
    _, (complaint,) = validated(model, table, "x")

    assert complaint.startswith(f"x: {expected}")


class Wide:
    def __init__(
        self,
        *,
        pair: tuple[int, int] = (1, 2),
        mixed: tuple[int | Literal["auto"], ...] = (),
        steps: Sequence[Literal["none", "pool"]] = (),
        anchors: Sequence[Sequence[float]] = (),
        options: Mapping[str, Any] | None = None,
        inner: Assigner | None = None,
    ) -> None: ...


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({"anchors": [[float("nan")]]}, "'anchors.0.0' is NaN: it must be a number, and finite"),
        ({"anchors": [[1.0, float("inf")]]}, "'anchors.0.1' is Infinity: it must be a number, and finite"),
        ({"pair": [1]}, "'pair' is [1]: it must be an array of 2, each a whole number"),
        ({"pair": [1, 2, 3]}, "'pair' is [1, 2, 3]: it must be an array of 2, each a whole number"),
        ({"mixed": [1, "x"]}, '\'mixed.1\' is "x": it must be a whole number, or "auto"'),
        ({"steps": ["pool", "x"]}, '\'steps.1\' is "x": it must be "none" or "pool"'),
        ({"steps": True}, '\'steps\' is true: it must be an array of "none" or "pool"'),
        ({"anchors": 3}, "'anchors' is 3: it must be an array of arrays of numbers"),
        ({"options": 3}, "'options' is 3: it must be a table"),
        ({"inner": "atss"}, "'inner' is \"atss\": it must be a table"),
    ],
)
def test_a_complaint_names_the_innermost_value_that_does_not_fit(table: dict[str, object], expected: str) -> None:
    _, complaints = validated(settings_model(Wide), table, "x")

    assert complaints == [f"x: {expected}"]


def test_types_are_told_in_the_words_of_recipes() -> None:
    assert setting_types(Wide) == {
        "pair": "array of 2, each a whole number",
        "mixed": 'array of whole numbers or "auto"',
        "steps": 'array of "none" or "pool"',
        "anchors": "array of arrays of numbers",
        "options": "table",
        "inner": "table with `use`, which names an assigner",
    }
