"""Checks of scalings: the sections of a recipe to settings that change."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from detloom.interfaces import Scaling
from detloom.structures import Extent
from detloom.testing.construction import Build, check_numbers, check_signature, demand

__all__ = ["CHECKS"]

EXTENTS: Mapping[str, Extent] = {
    "backbone.stem.*.2": Extent.WIDTH,
    "backbone.widths": Extent.WIDTH,
    "backbone.between": Extent.WIDTH,
    "backbone.hidden": Extent.HIDDEN,
    "backbone.depths": Extent.DEPTH,
    "neck.auxiliary": Extent.WIDTH,
    "neck.depth": Extent.DEPTH,
    "head.anchors": Extent.LENGTH,
    "data.image_size": Extent.IMAGE,
}


def settings_are_keyword_only_and_typed(build: Build) -> None:
    """A recipe's table is the keyword arguments of the class."""
    check_signature(build, ())


def numbers_without_sense_are_refused_by_name(build: Build) -> None:
    """A factor of 0 is a mistake of a recipe, not of the network that would come of it."""
    check_numbers(build)


def something_is_changed(build: Build) -> None:
    """A scaling that changes nothing of a network that has everything is none."""
    scaling: Scaling = build()
    demand(scaling.changes, "`changes` is empty; name what it may change, as frozenset({Extent.DEPTH})")
    demand(
        scaling.scale(_tables(), EXTENTS),
        "nothing of a network with depths, widths, anchors and pictures is changed; return the settings that change, "
        "by section and name. If these settings change nothing, check it with others",
    )


def what_it_says_is_changed_alone(build: Build) -> None:
    """A scaling of depths is asked for depths, and a kernel is no width."""
    scaling: Scaling = build()
    before, after = dict(_numbers(_tables())), dict(_numbers(_scaled(scaling)))
    for path in before.keys() & after.keys():
        extent = _extent(path)
        demand(
            before[path] == after[path] or extent in scaling.changes,
            f"{path}, {extent or 'which is not measured'}, became {after[path]} from {before[path]}; change the "
            f"settings at the paths of `extents` that are one of: {', '.join(sorted(scaling.changes))}",
        )


def lists_keep_their_form(build: Build) -> None:
    """A stage has a width before and after."""
    before, after = dict(_numbers(_tables())), dict(_numbers(_scaled(build())))
    changed = sorted(before.keys() ^ after.keys())
    demand(not changed, f"lists are longer or shorter than before, at {changed[:3]}; change the numbers in them alone")


def whole_numbers_stay_whole(build: Build) -> None:
    """There is no half channel."""
    before = dict(_numbers(_tables()))
    for path, number in _numbers(_scaled(build())):
        is_whole = type(number) is int
        demand(
            is_whole or not isinstance(before.get(path), int),
            f"{path} became {number!r} from {before.get(path)!r}; round to an int",
        )


def what_is_there_stays_there(build: Build) -> None:
    """A width of 0 stands for a part that is not there, and no other number becomes 0 or less."""
    before = dict(_numbers(_tables()))
    for path, number in _numbers(_scaled(build())):
        was = before.get(path, number)
        demand((number > 0) == (was > 0), f"{path} became {number} from {was}; leave 0 as it is, and others above 0")


def recipe_is_left_alone(build: Build) -> None:
    """The core compares what comes out with the recipe."""
    tables, extents = _tables(), dict(EXTENTS)
    build().scale(tables, extents)
    same = tables == _tables() and extents == EXTENTS
    demand(same, "the tables or extents were changed in place; return what changes, and work on copies")


def same_recipe_gives_the_same(build: Build) -> None:
    """An artifact's network is built from its recipe again."""
    scaling: Scaling = build()
    first = scaling.scale(_tables(), EXTENTS)
    same = first == scaling.scale(_tables(), EXTENTS)
    demand(same, "the same recipe gives other settings the second time; draw nothing at random and remember nothing")


CHECKS: tuple[Callable[[Build], None], ...] = (
    settings_are_keyword_only_and_typed,
    numbers_without_sense_are_refused_by_name,
    something_is_changed,
    what_it_says_is_changed_alone,
    lists_keep_their_form,
    whole_numbers_stay_whole,
    what_is_there_stays_there,
    recipe_is_left_alone,
    same_recipe_gives_the_same,
)


def _tables() -> dict[str, Any]:
    """Return a recipe that is larger and smaller than usual, with a stem whose kernels and strides are no widths."""
    return {
        "backbone": {
            "use": "staged",
            "stem": [[3, 2, 24], [3, 1, 64]],
            "widths": [64, 128, 1024],
            "between": [],
            "hidden": [32, 64, 512],
            "depths": [2, 6, 12],
            "activation": "relu",
        },
        "neck": {"use": "levelled", "auxiliary": [128, 0, 256], "depth": 2, "groups": 4},
        "head": {"use": "anchored", "anchors": [[[10.5, 13.0], [16.0, 30.0]], [[116.0, 90.0], [156.0, 198.0]]]},
        "data": {"image_size": [640, 1280]},
    }


def _scaled(scaling: Scaling) -> dict[str, Any]:
    """Return the tables with what a scaling changes."""
    tables = _tables()
    for key, value in scaling.scale(_tables(), EXTENTS).items():
        section, _, setting = key.partition(".")
        demand(
            setting in tables.get(section, {}),
            f"it returned '{key}'; name a setting that `extents` measures, by section and name, as 'backbone.widths'",
        )
        tables[section][setting] = copy.deepcopy(value)
    return tables


def _numbers(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Yield path and value of each number in tables and lists."""
    if isinstance(value, Mapping):
        pairs: Iterator[tuple[Any, Any]] = iter(value.items())
    elif isinstance(value, Sequence) and not isinstance(value, str):
        pairs = iter(enumerate(value))
    else:
        if isinstance(value, int | float):
            yield path.removeprefix("."), value
        return
    for key, each in pairs:
        yield from _numbers(each, f"{path}.{key}")


def _extent(path: str) -> Extent | None:
    """Return what a number measures, or None."""
    section, setting, *places = path.split(".")
    for measured, extent in EXTENTS.items():
        named, of, *members = measured.split(".")
        fits = all(member in ("*", place) for member, place in zip(members, places, strict=False))
        if (named, of) == (section, setting) and len(members) <= len(places) and fits:
            return extent
    return None
