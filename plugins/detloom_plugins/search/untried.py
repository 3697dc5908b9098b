"""Points that were not proposed yet, drawn evenly or as neighbours of another."""

import random
from bisect import bisect_left
from collections.abc import Collection, Sequence

import torch

from detloom.search.space import Choice, Point, SearchSpace

__all__ = ["mutant", "random_of", "untried"]

FAR = 0.2
"""How often a number is changed for any other one rather than for a neighbour."""


def random_of(generator: torch.Generator) -> random.Random:
    """Return a source of whole numbers of any size, as sizes of spaces are, seeded by a generator."""
    seed = int(torch.randint(2**62, (), generator=generator))
    return random.Random(seed)  # noqa: S311 - a search hides nothing


def untried(space: SearchSpace, proposed: Collection[Point], source: random.Random) -> Point | None:
    """Return one of the points that were not proposed, each as probable as another; None where all were.

    It draws a number among those that are left, and counts over the others, so that a space that is nearly exhausted
    takes no longer.
    """
    taken = sorted({_number(space, point) for point in proposed})
    left = space.size - len(taken)
    if left < 1:
        return None
    drawn = source.randrange(left)
    # How many points that were proposed lie before the drawn one: each shifts it by one.
    gaps = [number - place for place, number in enumerate(taken)]
    return _point(space, drawn + bisect_left(gaps, drawn + 1))


def mutant(space: SearchSpace, parent: Point, proposed: Collection[Point], source: random.Random) -> Point | None:
    """Return a point that differs from another at one key and was not proposed; None where there is none.

    Keys are as probable as each other; a number moves to a neighbour mostly.
    """
    found: dict[Point, float] = {}
    for key, choice in enumerate(space.choices):
        for place, share in enumerate(_shares(choice, parent[key])):
            point = (*parent[:key], place, *parent[key + 1 :])
            if share and point not in proposed:
                found[point] = share
    return source.choices([*found], [*found.values()])[0] if found else None


def _shares(choice: Choice, at: int) -> Sequence[float]:
    """Return how probable each option is after the one at a place."""
    count = len(choice.options)
    even = [float(place != at) / (count - 1) for place in range(count)]
    if not choice.is_ordered:
        return even
    near = [float(abs(place - at) == 1) for place in range(count)]
    return [FAR * one + (1 - FAR) * other / sum(near) for one, other in zip(even, near, strict=True)]


def _number(space: SearchSpace, point: Point) -> int:
    number = 0
    for place, count in zip(point, space.counts, strict=True):
        number = number * count + place
    return number


def _point(space: SearchSpace, number: int) -> Point:
    places = []
    for count in reversed(space.counts):
        number, place = divmod(number, count)
        places.append(place)
    return tuple(reversed(places))
