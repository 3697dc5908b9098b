"""Intervals that hold what they should as often as they say, and Holm's correction by hand."""

import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from detloom.study.matches import OVERLAPS, Matches
from detloom.study.statistics import Difference, compare, draw_images, draw_seeds, holm, statement

EVERY = (1 << len(OVERLAPS)) - 1


def arm(random: np.random.Generator, chance_I: NDArray[np.float64]) -> Matches:
    """Return a run on images of one object each: a detection that is right with a chance of its image's own."""
    num = len(chance_I)
    right_N = random.random(num) < chance_I
    score_N = np.clip(random.normal(0.5 + 0.15 * right_N, 0.15), 0, 1)
    return Matches(
        pictures=tuple(str(index) for index in range(num)),
        names=("one",),
        objects_IC=np.ones((num, 1), np.int64),
        image_N=np.arange(num),
        label_N=np.zeros(num, np.int64),
        score_N=score_N.astype(np.float32),
        boxes_N4=np.zeros((num, 4), np.float32),
        right_N=right_N * EVERY,
        ignored_N=np.zeros(num, np.int64),
    )


@pytest.mark.parametrize(("num_seeds", "trials"), [(1, 100), (3, 50)])
def test_interval_holds_the_true_difference_about_as_often_as_it_says(num_seeds: int, trials: int) -> None:
    lift, num_images, resamples = 0.1, 80, 200
    spread = 0.04 if num_seeds > 1 else 0.0
    random = np.random.default_rng(0)
    many = np.random.default_rng(1)
    hard = many.uniform(0.3, 0.8, 200_000)
    truth = arm(many, hard + lift).ap - arm(many, hard).ap
    held = 0

    for _ in range(trials):
        hard = random.uniform(0.3, 0.8, num_images)
        images_RI = draw_images(random, resamples, num_images)
        plain, lifted = (
            [arm(random, np.clip(hard + more + random.normal(0, spread), 0, 1)) for _ in range(num_seeds)]
            for more in (0.0, lift)
        )
        found = compare(
            np.array([b.ap - a.ap for a, b in zip(plain, lifted, strict=True)]),
            np.array(
                [b.resampled_ap(images_RI) - a.resampled_ap(images_RI) for a, b in zip(plain, lifted, strict=True)]
            ),
            draw_seeds(random, resamples, num_seeds),
            confidence=0.9,
        )
        held += found.low <= truth <= found.high

    # Within three standard deviations of so many trials; with few seeds it is on the safe side.
    slack = 3 * math.sqrt(0.09 / trials)
    assert 0.9 - slack <= held / trials <= (0.9 + slack if num_seeds == 1 else 1)


def test_seeds_that_disagree_widen_the_interval_though_pictures_agree() -> None:
    difference_S = np.array([0.1, 0.12, 0.02])
    difference_SR = np.repeat(difference_S[:, None], 4000, axis=1)
    share_RS = draw_seeds(np.random.default_rng(0), 4000, 3)

    found = compare(difference_S, difference_SR, share_RS, confidence=0.95)

    # Student's interval by hand: the mean 0.08, the spread 0.0529, divided by sqrt(3), times 4.303.
    assert found.mean == pytest.approx(0.08)
    assert found.low < 0 < found.high
    assert found.high - found.low == pytest.approx(2 * 4.303 * 0.0529 / math.sqrt(3), rel=0.2)


def test_equal_arms_have_no_difference_and_a_p_value_of_one() -> None:
    zeros_SR = np.zeros((2, 50))

    found = compare(zeros_SR[:, 0], zeros_SR, draw_seeds(np.random.default_rng(0), 50, 2), confidence=0.95)

    assert (found.mean, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_resamples_without_objects_are_left_out() -> None:
    difference_SR = np.array([[0.1, np.nan, 0.3]])

    found = compare(np.array([0.2]), difference_SR, np.ones((3, 1)), confidence=0.5)

    assert 0.1 <= found.low <= found.high <= 0.3


def test_holm_by_hand() -> None:
    # Sorted 0.01, 0.02, 0.03, 0.04: times 4, 3, 2, 1, and never less than the one before.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(
    ("difference", "p_holm", "said"),
    [
        (Difference(0.01, -0.01, 0.03, 0.3, 3), 0.3, "no evidence of a difference"),
        (Difference(0.02, 0.01, 0.03, 0.03, 3), 0.09, "no evidence of a difference after Holm's correction"),
        (Difference(0.02, 0.01, 0.03, 0.001, 3), 0.01, "higher than the baseline"),
        (Difference(-0.02, -0.03, -0.01, 0.001, 3), 0.01, "lower than the baseline"),
        (Difference(0, 0, 0, 1, 1), 1, "no evidence of a difference; one seed: the interval does not cover seeds"),
    ],
)
def test_statement(difference: Difference, p_holm: float, said: str) -> None:
    assert statement(difference, p_holm, confidence=0.95) == said


def test_matches_are_read_as_they_were_written(tmp_path: Path) -> None:
    written = arm(np.random.default_rng(0), np.full(5, 0.5))

    written.write(tmp_path / "matches.safetensors")

    read = Matches.read(tmp_path / "matches.safetensors")
    assert read.ap == written.ap
    assert (read.pictures, read.names) == (written.pictures, written.names)
