"""Cases that Hypothesis draws, shrinks to the smallest that shows a mistake, and tells in words.

The same cases are drawn whenever the same tests run, so that a check that fails fails again. Other cases may be drawn
where other modules are imported: Hypothesis takes some numbers from the constants of the code that it tests.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar

from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir
from hypothesis.errors import Flaky

from detloom.testing.batches import SIZE, Layout, Row

__all__ = [
    "HEADS",
    "PICTURES",
    "Case",
    "Pictures",
    "counted",
    "holds_for_drawn",
    "leaving_nothing",
    "num_classes_of",
    "told",
]


class Case(Protocol):
    """What is drawn; ``str`` tells it to the component's author."""

    @property
    def where(self) -> object:
        """What the component is asked."""


AnyCase = TypeVar("AnyCase", bound=Case)

Pictures = Sequence[Sequence[Row]]
"""The objects of each picture of a batch."""

# Few, as a check runs over each component and its settings; the fixed batches beside them are the usual suspects.
NUM_CASES = 6
# Tries at making a case smaller; many objects would take thousands, for little.
NUM_SHRINKS = 100

RUN = settings(
    max_examples=NUM_CASES,
    derandomize=True,
    deadline=None,
    database=None,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
    report_multiple_bugs=False,
    print_blob=False,
    verbosity=Verbosity.quiet,
)


def holds_for_drawn(cases: st.SearchStrategy[AnyCase], demanded: Callable[[AnyCase], None]) -> None:
    """Demand something of cases that are drawn.

    Args:
        cases: What they are drawn from.
        demanded: Raises an AssertionError where a case shows a mistake, and draws nothing.

    Raises:
        AssertionError: A case shows a mistake; has the smallest that was found, in words.
    """
    # Each that fails is smaller than the one before.
    failed: list[tuple[AnyCase, Exception]] = []
    tries = 0

    @RUN
    @given(cases)
    def run(case: AnyCase) -> None:
        nonlocal tries
        tries += bool(failed)
        if tries > NUM_SHRINKS:
            raise _SmallEnough
        try:
            demanded(case)
        except Exception as error:
            failed.append((case, error))
            raise

    try:
        run()
    except (Exception, _SmallEnough) as stop:
        if not failed:
            raise
        case, error = failed[-1]
        raised = "" if isinstance(error, AssertionError) else f"{case.where}: raised {type(error).__name__}: "
        again = "\n  Given again it does not show it: keep no state, draw no random numbers" * isinstance(stop, Flaky)
        raise AssertionError(f"{raised}{error}\n  the smallest case found that shows it: {case}{again}") from error


class _SmallEnough(BaseException):
    """Enough was tried to make a case smaller; no error, which Hypothesis would take for another mistake."""


@contextmanager
def leaving_nothing() -> Iterator[None]:
    """Keep what Hypothesis writes for its next run out of the present folder."""
    with tempfile.TemporaryDirectory() as folder:
        set_hypothesis_home_dir(folder)
        try:
            yield
        finally:
            set_hypothesis_home_dir(None)


def counted(number: int, one: str, several: str) -> str:
    """Return a number of things in words."""
    return f"{number} {one if number == 1 else several}"


def num_classes_of(pictures: Pictures, more_classes: int) -> int:
    """Return the number of classes up to the last that an object has, and some more."""
    return int(max((row[0] for rows in pictures for row in rows), default=0)) + 1 + more_classes


def told(pictures: Pictures, size: tuple[int, int] = SIZE) -> str:
    """Return the objects of each picture, a line each."""
    lines = [f"{counted(len(pictures), 'image', 'images')} of {size[0]} x {size[1]}"]
    for index, rows in enumerate(pictures):
        objects = (f"class {row[0]:g} at [{', '.join(f'{side:g}' for side in row[1:])}]" for row in rows)
        lines.append(f"    image {index}: {', '.join(objects) or 'no objects'}")
    return "\n".join(lines)


# The simplest first, which Hypothesis prefers among those that show a mistake.
HEADS = tuple(
    Layout(levels, anchors, objectness, bins)
    for bins in (0, 5)
    for objectness in (False, True)
    for anchors in ((0, 1, 2, 3) if bins == 0 else (0,))
    for levels in (1, 2, 3, 4)
)
"""Every kind of head that is drawn from."""

Side = tuple[int, int]
"""Where an object begins and ends, along x or y."""

LABELS = st.integers(0, 2)


def _inside(limit: int, shortest: int = 3, longest: int | None = None) -> st.SearchStrategy[Side]:
    """Return sides inside an image, at least a pixel from its border."""
    last = 3 * limit // 4 if longest is None else longest
    drawn = st.tuples(st.integers(shortest, last), st.integers(0, 30))
    return drawn.map(lambda side: (begin := 1 + (limit - 2 - side[0]) * side[1] // 30, begin + side[0]))


def _beyond(limit: int) -> st.SearchStrategy[Side]:
    return st.tuples(st.integers(0, 40), st.integers(0, 40)).map(lambda more: (-more[0], limit + more[1]))


def _touching(limit: int) -> st.SearchStrategy[Side]:
    drawn = st.tuples(st.integers(3, limit // 2), st.booleans())
    return drawn.map(lambda side: (limit - side[0], limit) if side[1] else (0, side[0]))


def _objects(x: st.SearchStrategy[Side], y: st.SearchStrategy[Side]) -> st.SearchStrategy[Row]:
    return st.tuples(LABELS, x, y).map(lambda row: (row[0], row[1][0], row[2][0], row[1][1], row[2][1]))


def _pictures(objects: st.SearchStrategy[Row]) -> st.SearchStrategy[Pictures]:
    """Return batches whose every picture has an object, and none a box twice."""
    return st.lists(_distinct(objects, 3), min_size=1, max_size=3)


def _distinct(objects: st.SearchStrategy[Row], most: int) -> st.SearchStrategy[list[Row]]:
    return st.lists(objects, min_size=1, max_size=most, unique_by=lambda row: row[1:])


def _some_empty(drawn: tuple[Pictures, int]) -> Pictures:
    pictures, place = drawn
    place = min(place, len(pictures))
    return [*pictures[:place], [], *pictures[place:]]


def _one_twice(drawn: tuple[Pictures, int]) -> Pictures:
    (row, *others), *more = drawn[0]
    return [[row, *others, (drawn[1], *row[1:])], *more]


def _of_one_class(drawn: tuple[Iterable[Row], int]) -> Pictures:
    return [[(drawn[1], *row[1:]) for row in drawn[0]]]


HEIGHT, WIDTH = SIZE
ORDINARY = _objects(_inside(WIDTH), _inside(HEIGHT))
THIN_X, THIN_Y = _inside(WIDTH, 1, 1), _inside(HEIGHT, 1, 1)

PICTURES: Mapping[str, st.SearchStrategy[Pictures]] = {
    "ordinary": _pictures(ORDINARY),
    "none in some images": st.tuples(_pictures(ORDINARY), st.integers(0, 3)).map(_some_empty),
    "equal": st.tuples(_pictures(ORDINARY), LABELS).map(_one_twice),
    "border": _pictures(
        _objects(_touching(WIDTH), _inside(HEIGHT))
        | _objects(_inside(WIDTH), _touching(HEIGHT))
        | _objects(_touching(WIDTH), _touching(HEIGHT))
    ),
    "large": _pictures(
        _objects(_beyond(WIDTH), _beyond(HEIGHT))
        | _objects(_beyond(WIDTH), _inside(HEIGHT))
        | _objects(_inside(WIDTH), _beyond(HEIGHT))
    ),
    "thin": _pictures(_objects(THIN_X, THIN_Y) | _objects(THIN_X, _inside(HEIGHT)) | _objects(_inside(WIDTH), THIN_Y)),
    "one class": st.tuples(_distinct(ORDINARY, 12), LABELS).map(_of_one_class),
}
"""Batches of ordinary objects, and at the limits of what there is; see ``batches.EDGES``."""
