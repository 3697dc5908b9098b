"""Networks of a space as they are built, one for each set of options that was asked for.

A point is written as ``{key: index of its option}``; what is left out has the first option.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from detloom.engine.statistics import as_in_evaluation
from detloom_plugins.search.mixed import shapes_of
from detloom_plugins.search.structure import Structures

__all__ = ["Variant", "Variants"]


@dataclass(frozen=True, slots=True)
class Variant:
    """One network, and what is known of its modules by path.

    Attributes:
        network: Its root.
        modules: All of them, also where one stands again.
        own: The structure of each alone.
        whole: The structure of each with all that is in it.
        shapes: What each returned, at each call, in order; nothing where it was not called.
    """

    network: nn.Module
    modules: Mapping[str, nn.Module]
    own: Mapping[str, int]
    whole: Mapping[str, int]
    shapes: Mapping[str, Sequence[object]]


class Variants:
    """The networks of a space, built when they are first asked for, with the same random numbers.

    Args:
        choices: The options of each key.
        build: Makes the network of a point: the place of an option for each key, in their order.
        example: What a network is called with to find the shapes inside.
        seed: Of the initial weights.
        settings: Names of attributes that do not count, see ``Structures``.

    Attributes:
        choices: As given.
        example: As given.
        repeated: Numbers by ``id`` of the modules that stand in several places of a network.
    """

    def __init__(
        self,
        choices: Mapping[str, Sequence[object]],
        build: Callable[[tuple[int, ...]], nn.Module],
        example: Tensor,
        *,
        seed: int,
        settings: Sequence[str] = (),
    ) -> None:
        self.choices = choices
        self.example = example
        self._build = build
        self._seed = seed
        self._structures = Structures(settings)
        self._built: dict[tuple[int, ...], Variant] = {}
        self.repeated: set[int] = set()

    def at(self, indices: Mapping[str, int]) -> Variant:
        """Return the network of a point."""
        place = self._place(indices)
        if place not in self._built:
            self._built[place] = self._variant(self.network(indices))
        return self._built[place]

    def network(self, indices: Mapping[str, int]) -> nn.Module:
        """Return the network of a point, built anew."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed)
            return self._build(self._place(indices))

    def options(self, indices: Mapping[str, int]) -> dict[str, object]:
        """Return the options of a point themselves."""
        return {key: options[indices.get(key, 0)] for key, options in self.choices.items()}

    def others(self, key: str, indices: Mapping[str, int]) -> list[Variant]:
        """Return the networks that differ from one in the option of a key that is not among its indices."""
        return [self.at({**indices, key: index}) for index in range(1, len(self.choices[key]))]

    def _place(self, indices: Mapping[str, int]) -> tuple[int, ...]:
        return tuple(indices.get(key, 0) for key in self.choices)

    def _variant(self, network: nn.Module) -> Variant:
        own, whole = self._structures.of(network)
        modules = dict(network.named_modules(remove_duplicate=False))
        places = Counter(map(id, modules.values()))
        self.repeated |= {number for number, count in places.items() if count > 1}
        return Variant(network, modules, own, whole, self._shapes(network, modules))

    def _shapes(self, network: nn.Module, modules: Mapping[str, nn.Module]) -> dict[str, list[object]]:
        seen: dict[int, list[object]] = {}

        def note(module: nn.Module, _given: object, returned: object) -> None:
            seen.setdefault(id(module), []).append(shapes_of(returned))

        hooks = [module.register_forward_hook(note) for module in set(modules.values())]
        try:
            with as_in_evaluation(network), torch.no_grad():
                network(self.example)
        finally:
            for hook in hooks:
                hook.remove()
        return {path: seen.get(id(module), []) for path, module in modules.items()}
