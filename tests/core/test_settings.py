"""Tables against signatures."""

from enum import StrEnum

import pytest

from detloom.data.settings import DataSettings
from detloom.engine.settings import TrainSettings
from detloom.settings import settings_model, validated


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
    assert "'sizes.1' is \"two\": input should be a valid integer" in text
    assert "'colour' is \"blue\": input should be 'red'" in text


def test_text_never_becomes_a_number() -> None:
    _, complaints = validated(settings_model(Component), {"needed": "3"}, "x")

    assert complaints == ["x: 'needed' is \"3\": input should be a valid integer"]


def test_a_truth_value_is_no_number() -> None:
    _, complaints = validated(settings_model(Component), {"needed": True}, "x")

    assert len(complaints) == 1


def test_what_the_assembler_supplies_is_no_setting() -> None:
    _, complaints = validated(settings_model(Component), {"needed": 1, "inputs": 2}, "x")

    assert "no setting is called 'inputs'" in complaints[0]


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({"cache": "disk"}, "'cache' is \"disk\": input should be 'auto', 'ram' or 'off'"),
        ({"workers": -1}, "'workers' is -1: it must be a whole number of at least 0, or 'auto'"),
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
