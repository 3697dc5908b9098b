"""What is known of a point without training it: sizes, times, a chip's figures, zero-cost scores.

A figure is found when it is wanted, the cheap ones first, and none after one that is over its constraint.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property

import torch

from detloom.assembly import check
from detloom.detector import Detector
from detloom.errors import ExportError, RecipeError, suggest
from detloom.export.fidelity import median_ms
from detloom.export.folding import canvas_of, deploy, network_of
from detloom.export.targets import Chosen, choose_target
from detloom.recipe import Recipe
from detloom.search.ground import drawn_detector
from detloom.search.settings import AP, Search
from detloom.search.zero_cost import SCORERS

__all__ = ["COUNTED", "LATENCY", "Figures", "UnknownFigureError", "in_digits"]

COUNTED: Mapping[str, str] = {
    "parameters": "deployed_parameters",
    "gflops": "deployed_gflops",
    "training_parameters": "training_parameters",
    "training_gflops": "training_gflops",
}
"""What is counted of a network, and where a report of ``check`` has it."""

ALWAYS = ("parameters", "gflops")
LATENCY = "latency_ms"
KNOWN = (*COUNTED, *SCORERS, LATENCY)


class UnknownFigureError(RecipeError):
    """What a search asks for is no figure of any point."""


class Figures:
    """Finds the figures that a search asks for.

    Args:
        search: Whose objectives and constraints are asked for.
        names: Class names of the data.
        seed: Of the drawn weights.

    Raises:
        ExportError: The target is none, or needs packages.
        UnknownFigureError: There is no target, and a figure is none of the others.
    """

    def __init__(self, search: Search, names: Sequence[str], seed: int) -> None:
        self._names = tuple(names)
        self._seed = seed
        self._chosen = _chosen(search)
        self._limits = search.constraints
        asked = [each.name for each in search.space.objectives if each.name != AP]
        # Counting tells at once that a point is impossible, so it always comes first.
        self.wanted = tuple(dict.fromkeys((*ALWAYS, *sorted((*self._limits, *asked), key=self._expense))))
        for name in self.wanted:
            if self._chosen is None and name not in KNOWN:
                raise _unknown(name, f"{search.name}.toml {'[constraints]' if name in self._limits else 'objectives'}")

    def of(self, recipe: Recipe) -> tuple[dict[str, float], str]:
        """Return a recipe's figures, and why it is refused, or nothing.

        Raises:
            RecipeError: The recipe is impossible.
            UnknownFigureError: A figure is not one of the target's.
        """
        sources = _Sources(recipe, self._names, self._seed, self._chosen)
        found: dict[str, float] = {}
        for name in self.wanted:
            found[name] = sources.figure(name)
            limit = self._limits.get(name)
            if limit is not None and found[name] > limit:
                return found, f"{name} is {in_digits(found[name])}, over the constraint of {in_digits(limit)}"
        return found, ""

    @staticmethod
    def _expense(name: str) -> int:
        return KNOWN.index(name) if name in KNOWN else len(KNOWN)


class _Sources:
    """The figures of one recipe, each source asked once."""

    def __init__(self, recipe: Recipe, names: Sequence[str], seed: int, chosen: Chosen | None) -> None:
        self._recipe = recipe
        self._names = names
        self._seed = seed
        self._chosen = chosen

    def figure(self, name: str) -> float:
        if name in COUNTED:
            return self._counted[name]
        if name in SCORERS:
            return SCORERS[name](self._drawn())
        if name == LATENCY:
            return self._latency_ms()
        if name not in self._of_target:
            assert self._chosen is not None  # noqa: S101 - other names are refused without a target
            raise UnknownFigureError(
                f"the preflight for '{self._chosen.target}' has no figure '{name}'.{suggest(name, self._of_target)} "
                f"Its figures: {', '.join(self._of_target) or 'none'}; others: {', '.join(KNOWN)}"
            )
        return self._of_target[name]

    @cached_property
    def _counted(self) -> Mapping[str, float]:
        report = check(self._recipe, num_classes=len(self._names))
        return {name: getattr(report, attribute) for name, attribute in COUNTED.items()}

    @cached_property
    def _of_target(self) -> Mapping[str, float]:
        assert self._chosen is not None  # noqa: S101 - asked for where there is one
        deployed = deploy(self._drawn(), self._chosen, example=None)
        return self._chosen.exporter.check(network_of(deployed.detector, canvas_of(deployed.detector, None))).figures

    def _latency_ms(self) -> float:
        detector = self._drawn().fuse().eval()
        height, width = canvas_of(detector, None)
        network = network_of(detector, (height, width))
        with torch.inference_mode():
            return median_ms(network.module, network.example_BCHW())

    def _drawn(self) -> Detector:
        return drawn_detector(self._recipe, self._names, self._seed)


def _chosen(search: Search) -> Chosen | None:
    target = search.settings.target
    if target is None:
        return None
    try:
        return choose_target(target, {})
    except ExportError as error:
        text = str(error).replace(f"--target {target}", f"target = {target}")
        raise ExportError(f"{search.name}.toml: {text}") from error


def _unknown(name: str, where: str) -> UnknownFigureError:
    costs = [each for each in KNOWN if each not in SCORERS]
    return UnknownFigureError(
        f"{where}: no figure is called '{name}'.{suggest(name, costs)} Costs: {', '.join(costs)}; the figures of a "
        'chip need target = "NAME", as `detloom export --targets` lists them'
    )


def in_digits(number: float) -> str:
    """Return a figure with the digits that are worth reading."""
    return f"{number:,.0f}" if number >= 1000 else f"{number:.4g}"
