"""What is said of a space whose networks cannot be mixed: which key, where, and what would do."""

from collections.abc import Iterator, Mapping, Sequence

from detloom_plugins.search.variants import Variants

__all__ = ["Refusals"]

ACCEPTED = (
    "Accepted are choices within backbone, neck or head that leave the shapes of what these return as they are: "
    "depths, inner widths, activations, kinds of block. Other strategies, as 'evolution', take any: "
    "`detloom list search`"
)
OTHERWISE = "Take it out of [space], or search with 'evolution', which trains each point: `detloom list search`"


class Refusals:
    """Says what is wrong with the keys of a space.

    Args:
        variants: The networks of the space.
    """

    def __init__(self, variants: Variants) -> None:
        self._variants = variants

    def without_effect(self, key: str) -> str | None:
        """Return that some options of a key make the same network, or None where all differ."""
        seen: dict[object, object] = {}
        options = self._variants.choices[key]
        for index, option in enumerate(options):
            variant = self._variants.at({key: index})
            structure = tuple((name, variant.whole.get(name)) for name in variant.modules if name and "." not in name)
            if structure in seen:
                return (
                    f"[space] '{key}': {seen[structure]!r} and {option!r} make the same network, and the strategy "
                    f"'gradient' chooses between networks alone.\n  {OTHERWISE}"
                )
            seen[structure] = option
        return None

    def of_parts(self, key: str) -> str | None:
        """Return that the options of a key make networks of different parts, or None where they do not."""
        parts = [
            [name for name in self._variants.at({key: index}).modules if name and "." not in name]
            for index in range(len(self._variants.choices[key]))
        ]
        if all(each == parts[0] for each in parts):
            return None
        made = self._lines(key, [", ".join(each) or "none" for each in parts])
        return (
            f"[space] '{key}': its options make networks of different parts, which cannot be mixed:\n{made}\n"
            f"  {ACCEPTED}"
        )

    def indivisible(self, path: str, key: str) -> str:
        """Return that a part would be replaced whole that cannot be."""
        return (
            f"[space] '{key}': it replaces the {path} as a whole, or changes how this decodes, and one {path} serves "
            f"all points of a supernet.\n  Accepted are choices of what is inside the {path}. {OTHERWISE}"
        )

    def shapes(self, path: str, key: str, shapes: Sequence[object], fixed: Mapping[str, int]) -> str:
        """Return that what the options return cannot be summed."""
        made = self._lines(key, [_written(each) for each in shapes])
        beside = "".join(f", with {name} = {self._variants.choices[name][index]!r}" for name, index in fixed.items())
        return (
            f"[space] '{key}': the {path} returns different shapes for its options{beside}, which cannot be mixed, "
            f"here or further in:\n{made}\n  {ACCEPTED}"
        )

    def too_many(self, path: str, keys: Sequence[str], count: int, most: int) -> str:
        """Return that too many keys change one place."""
        named = " and ".join(f"'{key}' ({len(self._variants.choices[key])})" for key in keys)
        return (
            f"[space] {named} change the same module, {path}, which would stand in the supernet {count} times; "
            f"{most} are the most.\n  Give them fewer options, or take one of them out of [space]."
        )

    def unlike(self, indices: Mapping[str, int]) -> str:
        """Return that the woven network computes something else than the one that it stands for."""
        point = ", ".join(f"{key} = {value!r}" for key, value in self._variants.options(indices).items())
        named = " and ".join(f"'{key}'" for key in indices) or "the first options"
        return (
            f"[space] {named}: the supernet does not compute what the network does that is made of {point}. A module "
            "may read more of its parts than what they return, or write into what it is given.\n"
            f"  {OTHERWISE}"
        )

    def _lines(self, key: str, values: Sequence[str]) -> str:
        options = self._variants.choices[key]
        return "\n".join(f"    {option!r}: {value}" for option, value in zip(options, values, strict=True))


def _written(shapes: object) -> str:
    return "; ".join(str(list(each)) for each in _tensors(shapes)) or "nothing that is known"


def _tensors(shapes: object) -> Iterator[tuple[int, ...]]:
    """Yield the shapes of tensors in what ``shapes_of`` returned, at each call."""
    if isinstance(shapes, tuple) and shapes and all(isinstance(side, int) for side in shapes):
        yield shapes
    elif isinstance(shapes, list | tuple):
        for each in shapes:
            yield from _tensors(each)
