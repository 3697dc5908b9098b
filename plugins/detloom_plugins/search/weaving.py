"""One network that holds all networks of a space: what they share stands there once, where they differ they are mixed.

The module trees are walked together from the root. Where a module is the same whatever the options it is shared; where
only what is in it differs, the walk goes on inside; where it differs itself, or where something in it would return
other shapes, all options stand side by side. In there the other keys are looked at again, so that several keys may
change one place. At the end the network is compared with those that it stands for, number by number.

References: Liu, Simonyan and Yang, DARTS (2019), arXiv:1806.09055, section 2; Wu et al., FBNet (2019),
arXiv:1812.03443, section 3.1.
"""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor, nn
from torch.nn import functional

from detloom.errors import RecipeError
from detloom_plugins.search.mixed import Gate, Mixed, parts_of
from detloom_plugins.search.refusals import Refusals
from detloom_plugins.search.structure import Structures
from detloom_plugins.search.variants import Variants

__all__ = ["Woven", "state_of", "weave"]

MOST_OPTIONS = 32
"""Modules that may stand side by side in one place, where several keys change it."""


@dataclass(frozen=True, slots=True)
class Woven:
    """A network of all options.

    Attributes:
        network: With ``Mixed`` modules; like the network of the point that its gates choose.
        gates: Of each key.
        places: Where each key has its mixed modules.
    """

    network: nn.Module
    gates: Mapping[str, Gate]
    places: Mapping[str, Sequence[str]]

    def choose(self, indices: Mapping[str, int]) -> None:
        """Make it like the network of a point."""
        for key, gate in self.gates.items():
            gate.choose(indices.get(key, 0))

    def weigh(self, indices: Mapping[str, int]) -> None:
        """Make it like the network of a point, with all options computed, and those of the point alone weighing."""
        for key, gate in self.gates.items():
            gate.weigh(functional.one_hot(torch.tensor(indices.get(key, 0)), gate.num_options).float())


def weave(
    choices: Mapping[str, Sequence[object]],
    build: Callable[[tuple[int, ...]], nn.Module],
    example: Tensor,
    *,
    seed: int = 0,
    indivisible: Collection[str] = (),
) -> Woven:
    """Return one network for all points of a space.

    Args:
        choices: The options of each key, at least two.
        build: Makes the network of a point: the place of an option for each key, in their order.
        example: What the networks are called with to find the shapes inside.
        seed: Of the initial weights.
        indivisible: Paths of modules of which more than their outputs are used, so that they cannot be mixed.

    Raises:
        RecipeError: A key does not change the network, or changes the shapes of what it returns.
    """
    given = tuple(key.rpartition(".")[2] for key in choices)
    # A component that keeps its settings beside the parts made of them mostly computes with the parts alone. Where
    # it does not, its settings count.
    try:
        return _woven(Variants(choices, build, example, seed=seed, settings=given), indivisible)
    except RecipeError:
        return _woven(Variants(choices, build, example, seed=seed), indivisible)


def state_of(network: nn.Module, prefix: str = "") -> dict[str, Tensor]:
    """Return the weights of the point that the gates of a woven network choose, by their names in its own network."""
    if isinstance(network, Mixed):
        return state_of(network.chosen, prefix)
    state: dict[str, Tensor] = {}
    network._save_to_state_dict(state, prefix, keep_vars=False)  # noqa: SLF001 - state_dict takes no Mixed for its option
    for name, child in network._modules.items():  # noqa: SLF001 - the public way leaves out what stands there twice
        if child is not None:
            state |= state_of(child, f"{prefix}{name}.")
    return state


def _woven(variants: Variants, indivisible: Collection[str]) -> Woven:
    woven = _Weaver(variants, indivisible).woven()
    unlike = _unlike(woven, variants)
    if unlike is not None:
        raise RecipeError(Refusals(variants).unlike(unlike))
    woven.choose({})
    return woven


class _Weaver:
    def __init__(self, variants: Variants, indivisible: Collection[str]) -> None:
        self._variants = variants
        self._indivisible = indivisible
        self._refusals = Refusals(variants)
        self._gates = {key: Gate(key, len(options)) for key, options in variants.choices.items()}
        self._places: dict[str, list[str]] = {key: [] for key in variants.choices}
        self._done: dict[tuple[int, tuple[tuple[str, int], ...]], nn.Module] = {}
        self._mixes: dict[tuple[str, int, tuple[tuple[str, int], ...]], nn.Module] = {}

    def woven(self) -> Woven:
        base = self._variants.at({})
        complaints = [
            complaint
            for key in self._variants.choices
            if (complaint := self._refusals.without_effect(key) or self._unfit("", key, {})) is not None
        ]
        if complaints:
            raise RecipeError("\n".join(complaints))
        self._weave_inside_(base.network, "", {})
        return Woven(base.network, self._gates, self._places)

    def _merged(self, module: nn.Module, path: str, fixed: Mapping[str, int]) -> nn.Module:
        """Return a module of the network with some options fixed, with all options of the others in it."""
        changing = [key for key in self._free(fixed) if self._differs(path, key, fixed)]
        here = [key for key in changing if self._is_mixed_at(path, key, fixed)]
        place = (id(module), tuple(sorted(fixed.items())))
        # What stands in two places, whatever the options, is still one.
        if here and (path, *place) not in self._mixes:
            self._mixes[path, *place] = self._mixed(path, here[0], fixed, changing)
            self._done.setdefault(place, self._mixes[path, *place])
        elif not here and place not in self._done:
            self._done[place] = module
            if changing:
                self._weave_inside_(module, path, fixed)
        return self._mixes[path, *place] if here else self._done[place]

    def _weave_inside_(self, module: nn.Module, path: str, fixed: Mapping[str, int]) -> None:
        for name, child in module._modules.items():  # noqa: SLF001 - the public way leaves out what stands there twice
            if child is not None:
                inner = f"{path}.{name}".lstrip(".")
                module._modules[name] = self._merged(child, inner, fixed)  # noqa: SLF001 - as is

    def _mixed(self, path: str, key: str, fixed: Mapping[str, int], changing: Sequence[str]) -> nn.Module:
        count = math.prod(len(self._variants.choices[each]) for each in changing)
        if count > MOST_OPTIONS and len(changing) > 1:
            raise RecipeError(self._refusals.too_many(path, changing, count, MOST_OPTIONS))
        if fixed and (complaint := self._misfit(path, key, fixed)):
            raise RecipeError(complaint)
        self._places[key].append(path)
        options: list[nn.Module] = []
        for index in range(self._gates[key].num_options):
            chosen = {**fixed, key: index}
            module = self._variants.at(chosen).modules[path]
            option = self._merged(module, path, chosen)
            for earlier in options:
                _share_(earlier, option, self._variants.repeated)
            options.append(option)
        return Mixed(self._gates[key], options)

    def _free(self, fixed: Mapping[str, int]) -> Iterator[str]:
        return (key for key in self._variants.choices if key not in fixed)

    def _differs(self, path: str, key: str, fixed: Mapping[str, int]) -> bool:
        whole = self._variants.at(fixed).whole[path]
        return any(other.whole.get(path) != whole for other in self._variants.others(key, fixed))

    def _is_mixed_at(self, path: str, key: str, fixed: Mapping[str, int]) -> bool:
        """Return whether the options of a key stand side by side at a path, or at one that it lies in."""
        own = self._variants.at(fixed).own[path]
        if path and any(other.own[path] != own for other in self._variants.others(key, fixed)):
            return True
        return self._unfit(path, key, fixed) is not None

    def _unfit(self, path: str, key: str, fixed: Mapping[str, int]) -> str | None:
        """Return why the options of a key cannot be mixed within a module, or None where they can be."""
        variants = self._variants
        if not path and (complaint := self._refusals.of_parts(key)):
            return complaint
        module = variants.at(fixed).modules[path]
        # By name alone: the base's children may be mixed already.
        for name in _names(module):
            inner = f"{path}.{name}".lstrip(".")
            if self._differs(inner, key, fixed) and self._is_mixed_at(inner, key, fixed):
                complaint = self._misfit(inner, key, fixed)
                if complaint is not None:
                    return complaint
        return None

    def _misfit(self, path: str, key: str, fixed: Mapping[str, int]) -> str | None:
        """Return why what the options of a key return at a path cannot be summed, or None where it can be."""
        if path in self._indivisible:
            return self._refusals.indivisible(path, key)
        made = [self._variants.at({**fixed, key: index}) for index in range(self._gates[key].num_options)]
        shapes = [list(dict.fromkeys(each.shapes[path])) for each in made]
        common = set(shapes[0]).intersection(*shapes)
        # What stands in several places has returned the shapes of all of them.
        if common and all(
            set(s) == common or id(m.modules[path]) in self._variants.repeated
            for s, m in zip(shapes, made, strict=True)
        ):
            return None
        return self._refusals.shapes(path, key, shapes, fixed)


def _names(module: nn.Module) -> list[str]:
    return [name for name, child in module._modules.items() if child is not None]  # noqa: SLF001 - the public way leaves out what stands there twice


def _share_(donor: nn.Module, receiver: nn.Module, repeated: Collection[int]) -> None:
    """Give a module the parts of another of the same place and structure; those that stand elsewhere too stay."""
    if (
        type(donor) is not type(receiver)
        or isinstance(donor, Mixed)
        or id(donor) in repeated
        or id(receiver) in repeated
    ):
        return
    for name, part in receiver._modules.items():  # noqa: SLF001 - the public way leaves out what stands there twice
        other = donor._modules.get(name)  # noqa: SLF001 - there is no public way to ask for one that may not be there
        if part is None or other is None or other is part:
            continue
        structures = Structures()
        is_same = structures.of(other)[1][""] == structures.of(part)[1][""]
        if is_same and not any(id(each) in repeated for each in (*other.modules(), *part.modules())):
            receiver._modules[name] = other  # noqa: SLF001 - torch would take it for a new name
        else:
            _share_(other, part, repeated)


def _unlike(woven: Woven, variants: Variants) -> dict[str, int] | None:
    """Return a point, with one or two keys off their first option, whose network the woven one is not equal to."""
    for indices in _tried(variants.choices):
        woven.choose(indices)
        network = variants.network(indices).eval()
        try:
            network.load_state_dict(state_of(woven.network))
            with torch.no_grad():
                right, found = network(variants.example), woven.network.eval()(variants.example)
                # As where the logits learn: an option may write into what the others read.
                woven.weigh(indices)
                beside = woven.network(variants.example)
        except (RuntimeError, AttributeError, TypeError):
            return indices
        finally:
            woven.choose(indices)
        if not _equal(right, found) or not _equal(right, beside):
            return indices
    return None


def _tried(choices: Mapping[str, Sequence[object]]) -> Iterable[dict[str, int]]:
    yield {}
    for key, options in choices.items():
        yield from ({key: index} for index in range(1, len(options)))
    for keys in combinations(choices, 2):
        yield {key: len(choices[key]) - 1 for key in keys}


def _equal(right: object, found: object) -> bool:
    if isinstance(right, Tensor):
        return isinstance(found, Tensor) and torch.equal(right, found)
    rights, founds = list(_tensors(right)), list(_tensors(found))
    return len(rights) == len(founds) and all(map(torch.equal, rights, founds))


def _tensors(output: object) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    for _, part in parts_of(output):
        yield from _tensors(part)
