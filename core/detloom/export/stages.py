"""The chain of an export: what is left of the AP, and of the raw maps, after each stage."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from detloom.detector import Detector
from detloom.engine.evaluate import build_evaluator, evaluate
from detloom.engine.predict import Forward
from detloom.export.fidelity import Fidelity, fidelities, maps_on, median_ms
from detloom.export.material import Material
from detloom.export.network import Network
from detloom.recipe import Recipe, load_recipe

__all__ = ["SIMULATOR", "TRAINED", "Measuring", "Stage"]

TRAINED, FOLDED, FINE_TUNED, SIMULATOR = "trained", "folded", "fine-tuned", "simulator"
AP = "AP"


@dataclass(frozen=True, slots=True)
class Stage:
    """What was measured of one form of a detector.

    Attributes:
        name: ``trained``, ``folded``, ``fine-tuned``, or as the exporter has it: ``float``, ``int8``, ``simulator``.
        metrics: The evaluator's summary; None where nothing was validated.
        fidelities: How true each raw map is to that of the network in float; empty for the forms of torch.
        latency_ms: Median time of a picture; None where it was not measured, as that of a simulator says nothing.
    """

    name: str
    metrics: Mapping[str, float] | None
    fidelities: tuple[Fidelity, ...] = ()
    latency_ms: float | None = None

    @property
    def ap(self) -> float | None:
        """Return the AP, where it was validated."""
        return None if self.metrics is None else self.metrics[AP]


class Measuring:
    """Measures stages, all on the same pictures, fitted on the same whole canvas.

    Args:
        material: Pictures and annotations.
        recipe: Whose evaluator and thresholds are used.
        size: Height and width of the canvas.
        said: Told what is measured.
    """

    def __init__(self, material: Material, recipe: Recipe, size: tuple[int, int], said: Callable[[str], None]) -> None:
        self._material, self._size, self._said = material, size, said
        # An exported file takes one size of pictures, and what is measured is the form that is given.
        self._recipe = load_recipe(recipe, {"predict.rectangular": False, "predict.fuse": False})
        self._evaluator = None if material.val is None else build_evaluator(recipe, material.val)

    def of_detector(self, name: str, detector: Detector) -> Stage:
        """Return what a form of torch is worth."""
        self._said(f"measuring the {name} form")

        def forward(images_BCHW: Tensor) -> object:
            return detector(images_BCHW)

        latency = None if name == TRAINED else median_ms(forward, self._material.comparison.images_BCHW)
        return Stage(name, self._metrics(detector, None), latency_ms=latency)

    def of_runner(self, name: str, forward: Forward, detector: Detector, network: Network) -> Stage:
        """Return what an exported form is worth, whose maps the detector's head decodes."""
        self._said(f"measuring the exported form '{name}'")
        images_BCHW = self._material.comparison.images_BCHW
        with torch.inference_mode():
            expected = maps_on(network.module, images_BCHW)
        found = fidelities(expected, maps_on(forward, images_BCHW), network.map_names)
        latency = None if name == SIMULATOR else median_ms(forward, images_BCHW)
        return Stage(name, self._metrics(detector, forward), found, latency)

    def _metrics(self, detector: Detector, forward: Forward | None) -> Mapping[str, float] | None:
        val = self._material.val
        if val is None or self._evaluator is None:
            return None
        return evaluate(
            detector, val, self._recipe, evaluator=self._evaluator, image_size=self._size, forward=forward
        ).summary
