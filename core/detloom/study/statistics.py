"""Is a difference more than chance? The paired bootstrap over pictures and seeds, and Holm's correction.

A study's AP varies for two reasons: other pictures would have been measured on, and other seeds would have given other
weights. Both are drawn again with replacement, many times (Efron and Tibshirani 1993, An Introduction to the
Bootstrap, chapters 8 and 13: percentile intervals of a two-sample problem that is paired). Pictures and seeds are
crossed, so each is drawn by itself: one choice of pictures serves both arms and all seeds, and one choice of seeds
both arms; what pictures or seeds have in common then cancels in the difference. Drawing both counts what they have
not in common twice, so the interval is on the safe side (Owen 2007, The Pigeonhole Bootstrap, Annals of Applied
Statistics 1).

Few seeds are drawn too much alike, as a sample's own spread is less than that of what it was drawn from. Their part is
widened as Hesterberg (2015, What Teachers Should Know About the Bootstrap, The American Statistician 69, section 5.3:
the expanded percentile interval) has it: by sqrt(n / (n - 1)), and by Student's quantile over the normal one.

The p value is twice the share of draws on the other side of 0, so below 1 - confidence where the interval leaves 0 out.
Several comparisons with one baseline are corrected by Holm (1979, A Simple Sequentially Rejective Multiple Test
Procedure, Scandinavian Journal of Statistics 6).

Shape letters: S seeds that both arms have, R resamples, I images.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

__all__ = ["METHOD", "Difference", "compare", "draw_images", "draw_seeds", "holm", "statement"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

METHOD = (
    "paired bootstrap over pictures and seeds, percentile interval (Efron and Tibshirani 1993), the seeds' part "
    "expanded for small numbers (Hesterberg 2015); p values corrected by Holm (1979)"
)


@dataclass(frozen=True, slots=True)
class Difference:
    """What an arm has more than the baseline.

    Attributes:
        mean: Mean of the differences in AP, over seeds that both have.
        low: Lower end of the confidence interval.
        high: Upper end.
        p: Two-sided p value, for this comparison alone.
        seeds: How many seeds both have; the interval covers them where there are two and more.
    """

    mean: float
    low: float
    high: float
    p: float
    seeds: int


def draw_images(random: np.random.Generator, resamples: int, num_images: int) -> Integers:
    """Return ``[R, I]``: how often each image is drawn in each resample."""
    return random.multinomial(num_images, np.full(num_images, 1 / num_images), size=resamples).astype(np.int64)


def draw_seeds(random: np.random.Generator, resamples: int, num_seeds: int) -> Floats:
    """Return ``[R, S]``: the share of each seed in each resample."""
    return random.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=resamples) / num_seeds


def compare(difference_S: Floats, difference_SR: Floats, share_RS: Floats, *, confidence: float) -> Difference:
    """Return a difference with its interval and p value.

    Args:
        difference_S: AP of the arm less that of the baseline, with each seed.
        difference_SR: The same on the images of each resample.
        share_RS: What ``draw_seeds`` returned.
        confidence: Of the interval, as 0.95.
    """
    num_seeds = len(difference_S)
    mean_R = difference_SR.mean(0)
    if num_seeds > 1:
        drawn_R = (share_RS.T * difference_SR).sum(0)
        mean_R = mean_R + _expansion(num_seeds, confidence) * (drawn_R - mean_R)
    # A resample without any object has no AP.
    mean_R = mean_R[np.isfinite(mean_R)]
    tail = (1 - confidence) / 2
    low, high = np.quantile(mean_R, [tail, 1 - tail])
    # Draws of exactly 0 speak for neither side: two equal arms have a p value of 1.
    smaller = min(int((mean_R <= 0).sum()), int((mean_R >= 0).sum()))
    p = min(1.0, 2 * (smaller + 1) / (len(mean_R) + 1))
    return Difference(float(difference_S.mean()), float(low), float(high), p, num_seeds)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p values corrected for their number, in the order given."""
    corrected = [1.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected


def statement(difference: Difference, p_holm: float, *, confidence: float) -> str:
    """Return in words what a comparison shows, and what it does not cover."""
    if difference.low <= 0 <= difference.high:
        said = "no evidence of a difference"
    elif p_holm >= 1 - confidence:
        said = "no evidence of a difference after Holm's correction"
    else:
        said = "higher than the baseline" if difference.mean > 0 else "lower than the baseline"
    return said + ("" if difference.seeds > 1 else "; one seed: the interval does not cover seeds")


def _expansion(num_seeds: int, confidence: float) -> float:
    """Return by how much the part of so many seeds is widened."""
    from scipy.stats import t

    upper = (1 + confidence) / 2
    student = float(t.ppf(upper, num_seeds - 1))
    return math.sqrt(num_seeds / (num_seeds - 1)) * student / NormalDist().inv_cdf(upper)
