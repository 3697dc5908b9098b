"""Cases are drawn alike, made small, and told in words."""
# ruff: noqa: ARG002 - the wrong ones override a method whose arguments each uses in part

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch
from hypothesis.configuration import storage_directory

import detloom.testing
from detloom.errors import PluginError
from detloom.interfaces import Assigner
from detloom.structures import Assignment, Predictions, Targets
from detloom.testing.drawing import leaving_nothing


class CornerAssigner(Assigner):
    """A target is learned by the first prior, surely."""

    @torch.no_grad()
    def assign(self, predictions: Predictions, targets: Targets) -> Assignment:
        return Assignment(
            image_M=targets.image_T,
            prior_M=torch.zeros_like(targets.image_T),
            target_M=torch.arange(targets.num_targets),
            quality_M=torch.ones(targets.num_targets),
        )


class PairlessAssigner(CornerAssigner):
    """Fails where a picture has two objects or more."""

    def assign(self, predictions: Predictions, targets: Targets) -> Assignment:
        if targets.most_per_image >= 2:
            raise IndexError("index 1 is out of range")
        return super().assign(predictions, targets)


class OtherwiseAssigner(CornerAssigner):
    """Takes for granted that there is a second class, as there is in all fixed batches."""

    def assign(self, predictions: Predictions, targets: Targets) -> Assignment:
        if predictions.num_classes == 1:
            raise IndexError("there is no second class")
        return super().assign(predictions, targets)


class MoodyAssigner(CornerAssigner):
    """Fails at its first call, and never again."""

    calls = 0

    def assign(self, predictions: Predictions, targets: Targets) -> Assignment:
        MoodyAssigner.calls += 1
        if MoodyAssigner.calls == 1:
            raise ValueError("it is the first call")
        return super().assign(predictions, targets)


def broken_by(cls: type[Assigner], name: str) -> str:
    """Return what a check says of a component."""
    (check,) = (each for each in detloom.testing.checks_of(cls) if each.name == name)
    with pytest.raises(AssertionError) as caught_error:
        check()
    return str(caught_error.value)


def test_right_assigner_passes_what_is_drawn() -> None:
    detloom.testing.check_component(CornerAssigner)


def test_case_is_made_small_and_told_in_words() -> None:
    told = broken_by(PairlessAssigner, "matches_are_a_valid_assignment")

    box = r"\[\d+, \d+, \d+, \d+\]"
    assert re.fullmatch(
        r"PairlessAssigner, matches are a valid assignment: assign on points on 1 level, without objectness: "
        r"raised IndexError: index 1 is out of range\n"
        r"  the smallest case found that shows it: 1 class, 1 image of 64 x 128\n"
        rf"    image 0: class 0 at {box}, class 0 at {box}",
        told,
    )


def test_same_cases_are_drawn_again() -> None:
    first, again = (broken_by(PairlessAssigner, "objects_at_the_border_are_served") for _ in range(2))

    assert first == again


def test_what_no_fixed_batch_shows_is_drawn() -> None:
    told = broken_by(OtherwiseAssigner, "matches_are_a_valid_assignment")

    assert "there is no second class\n  the smallest case found that shows it: 1 class, 1 image" in told


def test_what_is_not_shown_again_is_said_to_be() -> None:
    told = broken_by(MoodyAssigner, "matches_are_a_valid_assignment")

    assert "it is the first call\n" in told
    assert told.endswith("Given again it does not show it: keep no state, draw no random numbers")


def test_what_hypothesis_keeps_is_left_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    with leaving_nothing():
        kept = storage_directory("examples")
        kept.create_if_missing()
        was_there = kept.path.is_dir()

    assert was_there
    assert not kept.path.exists()
    assert list(tmp_path.iterdir()) == []


def test_kit_without_hypothesis_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    spec = importlib.util.spec_from_file_location("kit_anew", detloom.testing.__file__)
    assert spec is not None
    assert spec.loader is not None

    with pytest.raises(PluginError, match=r"pip install 'detloom\[testing\]'"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
