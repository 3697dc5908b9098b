"""Checks of searches for anchors.

Shape letters: N boxes, A anchors; 2 is width and height.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from detloom.interfaces import AnchorSearch
from detloom.testing.construction import Build, check_numbers, check_signature, demand

__all__ = ["CHECKS"]

# Three shapes far apart, so that anchors of other sizes serve none of them.
SHAPES_32 = torch.tensor([[9.0, 12.0], [80.0, 30.0], [150.0, 260.0]])


def settings_are_keyword_only_and_typed(build: Build) -> None:
    """A recipe's table is the keyword arguments of the class."""
    check_signature(build, ())


def numbers_without_sense_are_refused_by_name(build: Build) -> None:
    """A threshold of 0 is a mistake of a recipe."""
    check_numbers(build)


def limits_are_numbers_that_make_sense(build: Build) -> None:
    """The core decides by them whether to search."""
    search: AnchorSearch = build()
    demand(search.threshold > 1, f"threshold is {search.threshold}; a ratio of sides is above 1 (published: 4)")
    demand(0 <= search.min_recall <= 1, f"min_recall is {search.min_recall}; a share lies between 0 and 1")


def anchors_are_as_many_as_at_present(build: Build) -> None:
    """A head has a number of anchors that its weights follow, however few boxes there are."""
    for number, boxes in ((6, 60), (9, 200), (3, 3)):
        found = _searched(build, _boxes(boxes), number)
        demand(
            found.shape == (number, 2) and found.is_floating_point(),
            f"a search for {number} anchors among {boxes} boxes returned {list(found.shape)} of {found.dtype}; return "
            "[A, 2] floats, as many as current_A2",
        )


def anchors_are_sizes_above_0(build: Build) -> None:
    """Boxes all alike, too, have anchors that are sizes."""
    for name, sizes_N2 in (("of many sizes", _boxes(100)), ("all alike", torch.full((40, 2), 20.0))):
        found = _searched(build, sizes_N2, 6)
        is_size = found.isfinite().all() and (found > 0).all()
        demand(is_size, f"boxes {name}: anchors {found.tolist()}; keep them above 0")


def anchors_come_by_growing_area(build: Build) -> None:
    """The core deals them to the levels in this order."""
    area_A = _searched(build, _boxes(100), 6).prod(dim=1)
    demand((area_A.diff() >= 0).all(), f"areas are {area_A.tolist()}; sort anchors, the smallest first")


def plain_groups_of_boxes_find_their_anchors(build: Build) -> None:
    """Where boxes have three shapes, each of them can be learned afterwards."""
    generator = torch.Generator().manual_seed(1)
    noise_N2 = 1 + 0.05 * torch.randn(120, 2, generator=generator)
    sizes_N2 = SHAPES_32.repeat(40, 1) * noise_N2
    found = _searched(build, sizes_N2, 3, torch.tensor([[400.0, 3.0], [3.0, 400.0], [500.0, 500.0]]))
    ratio_NA2 = sizes_N2[:, None] / found
    worst_NA = torch.maximum(ratio_NA2, 1 / ratio_NA2).amax(dim=2)
    recall = float((worst_NA.amin(dim=1) < build().threshold).float().mean())
    demand(
        recall == 1,
        f"boxes of three shapes have anchors {found.tolist()}, which can learn {recall:.0%} of them; find groups",
    )


def same_generator_gives_the_same_anchors(build: Build) -> None:
    """It is the only source of randomness."""
    first = _searched(build, _boxes(100), 6)
    torch.rand(1)
    again = _searched(build, _boxes(100), 6)
    demand(torch.equal(first, again), "the same generator gives other anchors; draw from the one that is given alone")


def global_randomness_is_left_alone(build: Build) -> None:
    """Whether anchors were searched changes nothing in the training that follows."""
    before = torch.get_rng_state()
    _searched(build, _boxes(100), 6)
    same = torch.equal(before, torch.get_rng_state())
    demand(same, "a search changes torch's global generator; draw from the one that is given alone")


def inputs_are_left_alone(build: Build) -> None:
    """The core compares the present anchors with those found."""
    sizes_N2, current_A2 = _boxes(100), _current(6)
    _searched(build, sizes_N2, 6, current_A2)
    same = torch.equal(sizes_N2, _boxes(100)) and torch.equal(current_A2, _current(6))
    demand(same, "an input was changed in place; work on a copy")


CHECKS: tuple[Callable[[Build], None], ...] = (
    settings_are_keyword_only_and_typed,
    numbers_without_sense_are_refused_by_name,
    limits_are_numbers_that_make_sense,
    anchors_are_as_many_as_at_present,
    anchors_are_sizes_above_0,
    anchors_come_by_growing_area,
    plain_groups_of_boxes_find_their_anchors,
    same_generator_gives_the_same_anchors,
    global_randomness_is_left_alone,
    inputs_are_left_alone,
)


def _boxes(number: int) -> Tensor:
    """Return widths and heights from 4 to 400 pixels."""
    generator = torch.Generator().manual_seed(0)
    return 4 * (torch.rand(number, 2, generator=generator) * 4.6).exp()


def _current(number: int) -> Tensor:
    return torch.linspace(10, 200, number)[:, None] * torch.tensor([1.0, 1.5])


def _searched(build: Build, sizes_N2: Tensor, number: int, current_A2: Tensor | None = None) -> Tensor:
    search: AnchorSearch = build()
    current_A2 = _current(number) if current_A2 is None else current_A2
    return search.search(sizes_N2, current_A2, torch.Generator().manual_seed(2))
