"""Importers that are wrong in one way each, which one check of the kit alone sees."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from detloom.assembly import assemble
from detloom.detector import Detector
from detloom.errors import ArtifactError
from detloom.foreign import ForeignCheckpoint, ForeignModule
from detloom.interfaces import Importer
from detloom.recipe import Recipe, load_recipe
from detloom.testing import check_component, importers

Caught = Callable[..., dict[str, str]]

NARROW = {
    "backbone.hidden": [8, 8, 8, 8],
    "backbone.widths": [8, 16, 16, 16],
    "neck.hidden": [8, 8, 8],
    "neck.widths": [8, 8, 8],
    "neck.outputs": [16, 16, 16],
    "head.num_classes": 2,
}


@cache
def example() -> tuple[ForeignCheckpoint, Recipe]:
    """Return a network whose tensors are called ``theirs.<our name>``, with its classes' names beside them."""
    recipe = load_recipe("demo", NARROW)
    tensors = {f"theirs.{name}": tensor for name, tensor in assemble(recipe).state_dict().items()}
    modules = {"": ForeignModule("theirs.Model", {"classes": ["cat", "dog"]})}
    return ForeignCheckpoint(Path("theirs.pt"), "", tensors, modules), recipe


class PlainImporter(Importer):
    def __init__(self, *, prefix: str = "theirs.") -> None:
        self.prefix = prefix

    def recognises(self, checkpoint: ForeignCheckpoint) -> bool:
        return all(name.startswith(self.prefix) for name in checkpoint.tensors)

    def class_names(self, checkpoint: ForeignCheckpoint) -> tuple[str, ...] | None:
        names = checkpoint.modules[""].attributes.get("classes")
        if names is None:
            return None
        if not isinstance(names, list) or not names or not all(isinstance(each, str) for each in names):
            raise ArtifactError(f"{checkpoint.path}: the classes of this file are no text")
        return tuple(names)

    def overrides(self, checkpoint: ForeignCheckpoint, recipe: Recipe) -> dict[str, Any]:  # noqa: ARG002 - as it is
        return {}

    def mapping(self, checkpoint: ForeignCheckpoint, detector: Detector) -> dict[str, str | None]:  # noqa: ARG002 - as it is
        return {name: name.removeprefix(self.prefix) for name in checkpoint.tensors}


class PositionalImporter(PlainImporter):
    def __init__(self, prefix: str = "theirs.") -> None:
        super().__init__(prefix=prefix)


class GreedyImporter(PlainImporter):
    def recognises(self, checkpoint: ForeignCheckpoint) -> bool:
        return bool(checkpoint.tensors)


class ModestImporter(PlainImporter):
    def recognises(self, checkpoint: ForeignCheckpoint) -> bool:
        del checkpoint
        return False


class NumberingImporter(PlainImporter):
    def class_names(self, checkpoint: ForeignCheckpoint) -> tuple[str, ...] | None:
        names = super().class_names(checkpoint)
        return None if names is None else tuple(range(len(names)))  # type: ignore[arg-type] # the mistake


class InventiveImporter(PlainImporter):
    def overrides(self, checkpoint: ForeignCheckpoint, recipe: Recipe) -> dict[str, Any]:
        return {**super().overrides(checkpoint, recipe), "head.implicitly": True}


class ForgetfulImporter(PlainImporter):
    def mapping(self, checkpoint: ForeignCheckpoint, detector: Detector) -> dict[str, str | None]:
        found = super().mapping(checkpoint, detector)
        return {name: mine for name, mine in found.items() if not name.endswith("bias")}


class TrustingImporter(PlainImporter):
    def class_names(self, checkpoint: ForeignCheckpoint) -> tuple[str, ...] | None:
        return tuple(checkpoint.modules[""].attributes["classes"])


class CarelessImporter(PlainImporter):
    def mapping(self, checkpoint: ForeignCheckpoint, detector: Detector) -> dict[str, str | None]:
        for tensor in checkpoint.tensors.values():
            tensor.zero_()
        return super().mapping(checkpoint, detector)


class RestlessImporter(PlainImporter):
    turn = 0

    def class_names(self, checkpoint: ForeignCheckpoint) -> tuple[str, ...] | None:
        RestlessImporter.turn += 1
        names = super().class_names(checkpoint)
        return names if names is None or RestlessImporter.turn % 3 else names[::-1]


WRONG: dict[str, tuple[type[Importer], str]] = {
    "settings_are_keyword_only_and_typed": (PositionalImporter, "every setting is keyword-only"),
    "other_tensors_are_not_recognised": (GreedyImporter, "return False"),
    "example_is_recognised": (ModestImporter, "return True for a file of this form"),
    "class_names_are_text_or_nothing": (NumberingImporter, "return a tuple of text, or None"),
    "overrides_are_settings_of_the_recipe": (InventiveImporter, "no setting is called 'implicitly'"),
    "every_tensor_has_its_place": (ForgetfulImporter, "leaves out ['theirs."),
    "damaged_files_are_borne_or_refused": (TrustingImporter, "raise an ArtifactError that says what is wrong"),
    "file_is_left_alone": (CarelessImporter, "leave tensors to the core"),
    "same_file_gives_the_same": (RestlessImporter, "class_names() of one file had two answers"),
}


def test_right_importer_passes_all() -> None:
    check_component(PlainImporter, example=example)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_importer_is_caught_by_its_check_alone_and_told_why(name: str, caught: Caught) -> None:
    cls, message = WRONG[name]

    broken = caught(cls, example)

    assert set(broken) == {name}
    assert message in broken[name]


def test_importer_without_an_example_is_asked_for_one(caught: Caught) -> None:
    assert "give example=..., a function that returns" in caught(PlainImporter)["example_is_recognised"]


def test_every_check_of_importers_has_a_wrong_one() -> None:
    assert [check.__name__ for check in importers.CHECKS] == list(WRONG)
