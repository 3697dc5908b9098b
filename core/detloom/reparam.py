"""Re-parameterisation: apply passes to a copy of a model, and prove that its outputs are the same.

The proof runs the model and its folded copy on one input, in float64 and in float32. In float64 rounding is so small
that a difference is a mistake in the maths; in float32 it shows what a user will see. Each folded module is measured
by itself too, on the input that the original one has, so that a failure names the place.
"""

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from detloom.detector import Detector
from detloom.errors import PluginError
from detloom.interfaces import Fold, ReparamPass
from detloom.structures import HeadMaps
from detloom.workshop import workshop

__all__ = ["Difference", "FoldReport", "PassFold", "fold", "replace_submodule_", "worst_first"]

Model = TypeVar("Model", bound=nn.Module)
Run = Callable[[nn.Module, Tensor], object]
TOLERANCES: Mapping[torch.dtype, float] = {torch.float64: 1e-9, torch.float32: 1e-4}


@dataclass(frozen=True, slots=True)
class PassFold:
    """One place of a pass's plan, and what recipes call the pass."""

    by: str
    fold: Fold


@dataclass(frozen=True, slots=True)
class Difference:
    """How far the folded form is from the original in one place.

    Attributes:
        where: Dotted name of a folded module, or of an output.
        precision: ``float64`` or ``float32``.
        absolute: Largest absolute difference.
        relative: Largest difference over 1 + the original's magnitude: that of the value or, where larger, the root
            mean square of its tensor, because small sums of large numbers carry the rounding of these.
        tolerance: What ``relative`` may be.
    """

    where: str
    precision: str
    absolute: float
    relative: float
    tolerance: float

    @property
    def is_within(self) -> bool:
        """Return whether the difference is tolerable; one that is no number is not."""
        return self.relative <= self.tolerance


@dataclass(frozen=True, slots=True)
class FoldReport:
    """What was folded, what was refused and why, and what was measured.

    Attributes:
        folds: Every place that a pass looked at, in the order of the work.
        modules: Differences of folded modules on the original's inputs; empty without an example.
        outputs: Differences of the model's outputs; empty without an example.
        unreached: Folded modules that the example does not run.
    """

    folds: tuple[PassFold, ...]
    modules: tuple[Difference, ...] = ()
    outputs: tuple[Difference, ...] = ()
    unreached: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """Return what the passes found wrong with the model, each once."""
        said = (f"{each.fold.path}: {each.fold.warning}" for each in self.folds if each.fold.warning)
        return tuple(dict.fromkeys(said))


def fold(
    model: Model,
    passes: Sequence[ReparamPass],
    *,
    example: Tensor | None = None,
    run: Run | None = None,
    tolerances: Mapping[torch.dtype, float] = TOLERANCES,
) -> tuple[Model, FoldReport]:
    """Return a folded copy in eval mode, and what was done; the model itself does not change.

    Args:
        model: The training form.
        passes: Applied in this order.
        example: Input of the proof, on the model's device; without one nothing is measured.
        run: What is compared: by default the model's output, and a detector's decoded predictions too.
        tolerances: Largest difference over 1 + magnitude, by precision.

    Raises:
        PluginError: The folded form differs by more than the tolerance; the message names the place.
    """
    folded, folds = _folded(model, passes)
    if example is None:
        return folded, FoldReport(folds)
    modules: list[Difference] = []
    outputs: list[Difference] = []
    paths = _measurable([each.fold for each in folds if each.fold.applies], model, folded)
    unreached: set[str] = set()
    for dtype, tolerance in tolerances.items():
        original = copy.deepcopy(model).eval().to(dtype)
        # Folded anew: rounding to another precision first would hide what the maths is worth.
        again = _folded(original, passes)[0]
        comparison = _compare(
            original, again, example.to(dtype), paths=paths, run=run or _default_run, tolerance=tolerance
        )
        modules += comparison.modules
        outputs += comparison.outputs
        unreached |= comparison.unreached
    report = FoldReport(folds, tuple(modules), tuple(outputs), tuple(sorted(unreached)))
    _demand_equality(report)
    return folded, report


def worst_first(differences: Sequence[Difference]) -> list[Difference]:
    """Return the differences, those that use up most of their tolerance first."""
    return sorted(differences, key=lambda each: -_badness(each) / each.tolerance)


def replace_submodule_(model: Model, path: str, replacement: nn.Module) -> Model:
    """Put a module in another's place; an empty path replaces the model itself."""
    if not path:
        return cast("Model", replacement)
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, replacement)
    return model


def _folded(model: Model, passes: Sequence[ReparamPass]) -> tuple[Model, tuple[PassFold, ...]]:
    twin = copy.deepcopy(model).eval()
    folds: list[PassFold] = []
    for each in passes:
        for place in each.plan(twin):
            folds.append(PassFold(workshop().name_of(type(each)), place))
            if place.applies:
                made = each.fold(twin.get_submodule(place.path), place).eval()
                twin = replace_submodule_(twin, place.path, made)
    return twin, tuple(folds)


def _measurable(folds: Sequence[Fold], original: nn.Module, folded: nn.Module) -> set[str]:
    """Return the modules whose outputs the folds leave as they were.

    A norm outside of a module may have been fused into a convolution inside, and a module may have come in another's
    place and been folded itself; the outer module is measured then.
    """
    in_both = {path for path, _ in original.named_modules()} & {path for path, _ in folded.named_modules()}

    def outermost(path: str) -> str:
        for other in folds:
            outside = not other.path or path.startswith(f"{other.path}.")
            prefix = f"{other.path}." if other.path else ""
            if outside and any(f"{prefix}{part}.".startswith(f"{path}.") for part in other.parts):
                return outermost(other.path)
        return path if path in in_both else outermost(path.rpartition(".")[0])

    # The whole model is measured by its outputs.
    return {outermost(each.path) for each in folds} - {""}


@dataclass(frozen=True, slots=True)
class _Comparison:
    modules: list[Difference]
    outputs: list[Difference]
    unreached: set[str]


class _Calls:
    """The first call of each of some modules: what went in, and what came out, as it was then."""

    def __init__(self, model: nn.Module, paths: set[str]) -> None:
        self.inputs: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}
        self.outputs: dict[str, object] = {}
        self.handles: list[RemovableHandle] = []
        for path in paths:
            self._follow(model.get_submodule(path), path)

    def _follow(self, module: nn.Module, path: str) -> None:
        # Copies, because activations may work in place on what they are given.
        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if path not in self.inputs:
                self.inputs[path] = copy.deepcopy((args, kwargs))

        def after(_: nn.Module, __: tuple[Any, ...], output: object) -> None:
            if path not in self.outputs:
                self.outputs[path] = copy.deepcopy(output)

        self.handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        self.handles.append(module.register_forward_hook(after))

    def close(self) -> None:
        for handle in self.handles:
            handle.remove()


@torch.no_grad()
def _compare(
    original: nn.Module,
    folded: nn.Module,
    example: Tensor,
    *,
    paths: set[str],
    run: Run,
    tolerance: float,
) -> _Comparison:
    precision = str(example.dtype).removeprefix("torch.")
    calls = _Calls(original, paths)
    try:
        expected = run(original, example)
    finally:
        calls.close()
    found = run(folded, example)
    modules = []
    for path in sorted(calls.outputs):
        args, kwargs = calls.inputs[path]
        again = folded.get_submodule(path)(*args, **kwargs)
        worst = max(
            _differences(calls.outputs[path], again, path, precision, tolerance),
            key=_badness,
            default=None,
        )
        if worst is not None:
            modules.append(replace(worst, where=path))
    return _Comparison(
        modules=modules,
        outputs=list(_differences(expected, found, "output", precision, tolerance)),
        unreached=paths - calls.outputs.keys(),
    )


def _default_run(model: nn.Module, example: Tensor) -> object:
    output = model(example)
    if isinstance(model, Detector) and isinstance(output, HeadMaps):
        predictions = model.head.decode(output.lead)
        # In cells, as boxes are predicted: a corner near 0 of a box across the picture has the rounding of its size.
        return {"maps": output, "boxes_in_cells": predictions.boxes_BP4 / predictions.priors.strides_P[:, None]}
    return output


def _differences(
    expected: object,
    found: object,
    where: str,
    precision: str,
    tolerance: float,
) -> Iterator[Difference]:
    ours, theirs = list(_tensors(expected, where)), list(_tensors(found, where))
    if [(name, a.shape) for name, a in ours] != [(name, b.shape) for name, b in theirs]:
        raise PluginError(f"folding changed the form of {where}: {_forms(ours)} became {_forms(theirs)}")
    for (name, a), (_, b) in zip(ours, theirs, strict=True):
        distance = (a.double() - b.double()).abs()
        relative = distance / (1 + a.double().abs().clamp(min=_root_mean_square(a)))
        yield Difference(name, precision, _largest(distance), _largest(relative), tolerance)


def _tensors(value: object, where: str) -> Iterator[tuple[str, Tensor]]:
    """Return the tensors of a nested value, and where each stands."""
    if isinstance(value, Tensor):
        yield where, value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from _tensors(each, f"{where}.{key}")
    elif is_dataclass(value):
        for each in fields(value):
            yield from _tensors(getattr(value, each.name), f"{where}.{each.name}")
    elif isinstance(value, list | tuple):
        for index, each in enumerate(value):
            yield from _tensors(each, f"{where}.{index}")


def _forms(named: list[tuple[str, Tensor]]) -> str:
    return ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in named) or "nothing"


def _largest(tensor: Tensor) -> float:
    return float(tensor.max()) if tensor.numel() else 0.0


def _root_mean_square(tensor: Tensor) -> float:
    return float(tensor.double().square().mean().sqrt()) if tensor.numel() else 0.0


def _badness(difference: Difference) -> float:
    return math.inf if math.isnan(difference.relative) else difference.relative


def _demand_equality(report: FoldReport) -> None:
    # A module at fault shows in all outputs after it, so modules are blamed first.
    for differences, noun in ((report.modules, "the module"), (report.outputs, "the model's")):
        wrong = [each for each in differences if not each.is_within]
        if wrong:
            # The precision that is measured first shows mistakes best.
            worst = max((each for each in wrong if each.precision == wrong[0].precision), key=_badness)
            raise PluginError(
                f"folding changed {noun} {worst.where}: in {worst.precision} it differs by {worst.absolute:.3g} "
                f"({worst.relative:.3g} of 1 + magnitude, at most {worst.tolerance:.3g} is rounding). "
                f"{_blame(report, worst.where)}Nothing was written; leave out the pass at fault"
            )


def _blame(report: FoldReport, where: str) -> str:
    by = sorted({each.by for each in report.folds if each.fold.applies and each.fold.path == where})
    return f"It was folded by {', '.join(by)}. " if by else ""
