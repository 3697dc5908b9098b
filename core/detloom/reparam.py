"""Re-parameterisation: apply passes to a copy of a model, and prove that its outputs are the same.

The proof runs the model and its folded copy on one input, in float64 and in float32. In float64 rounding is so small
that a difference is a mistake in the maths; in float32 it shows what a user will see. Each folded module is measured
by itself too, on the input that the original one has, so that a failure names the place. A fold that cannot be
measured is not proved, and is refused like a wrong one.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar, cast

import torch
from torch import Tensor, nn

from detloom.errors import PluginError
from detloom.interfaces import Fold, ReparamPass
from detloom.proof import Difference, Run, badness, called, compare, default_run
from detloom.workshop import workshop

__all__ = ["Difference", "FoldReport", "PassFold", "fold", "replace_submodule_", "worst_first"]

Model = TypeVar("Model", bound=nn.Module)
TOLERANCES: Mapping[torch.dtype, float] = {torch.float64: 1e-9, torch.float32: 1e-4}


@dataclass(frozen=True, slots=True)
class PassFold:
    """One place of a pass's plan, and what recipes call the pass."""

    by: str
    fold: Fold


@dataclass(frozen=True, slots=True)
class FoldReport:
    """What was folded, what was refused and why, and what was measured.

    Attributes:
        folds: Every place that a pass looked at, in the order of the work.
        modules: Differences of folded modules on the original's inputs; empty without an example.
        outputs: Differences of the model's outputs; empty without an example.
    """

    folds: tuple[PassFold, ...]
    modules: tuple[Difference, ...] = ()
    outputs: tuple[Difference, ...] = ()

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
        PluginError: The folded form differs by more than the tolerance, or is not proved: it cannot be run, holds
            nothing to compare, or has folds that the example does not run. The message names the place.
    """
    folded, folds = _folded(model, passes)
    if example is None:
        return folded, FoldReport(folds)
    modules: list[Difference] = []
    outputs: list[Difference] = []
    run = run or default_run
    first = next(iter(tolerances))
    run_by_example = called(copy.deepcopy(model).eval().to(first), example.to(first), run)
    paths = _measurable(folds, model, folded, run_by_example)
    for dtype, tolerance in tolerances.items():
        original = copy.deepcopy(model).eval().to(dtype)
        # Folded anew: rounding to another precision first would hide what the maths is worth.
        again = _folded(original, passes)[0]
        comparison = compare(
            original,
            again,
            example.to(dtype),
            paths=paths,
            run=run,
            tolerance=tolerance,
            blame=partial(_blame, folds),
        )
        modules += comparison.modules
        outputs += comparison.outputs
    report = FoldReport(folds, tuple(modules), tuple(outputs))
    _demand_equality(report)
    return folded, report


def worst_first(differences: Sequence[Difference]) -> list[Difference]:
    """Return the differences, those that use up most of their tolerance first."""
    return sorted(differences, key=lambda each: -badness(each) / each.tolerance)


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


def _measurable(
    folds: Sequence[PassFold], original: nn.Module, folded: nn.Module, run_by_example: set[str]
) -> set[str]:
    """Return the modules whose outputs the folds leave as they were.

    A norm outside of a module may have been fused into a convolution inside, and a module may have come in another's
    place and been folded itself, or be run by its parts alone; the outer module is measured then.
    """
    applied = [each.fold for each in folds if each.fold.applies]
    in_both = {path for path, _ in original.named_modules()} & {path for path, _ in folded.named_modules()}

    def outermost(path: str) -> str:
        for other in applied:
            outside = not other.path or path.startswith(f"{other.path}.")
            prefix = f"{other.path}." if other.path else ""
            if outside and any(f"{prefix}{part}.".startswith(f"{path}.") for part in other.parts):
                return outermost(other.path)
        return path if path in in_both & run_by_example or not path else outermost(path.rpartition(".")[0])

    _demand_reach(folds, in_both, run_by_example)
    # The whole model is measured by its outputs.
    return {outermost(each.path) for each in applied} - {""}


def _demand_reach(folds: Sequence[PassFold], in_both: set[str], run_by_example: set[str]) -> None:
    """Refuse folds of modules that the example does not run: equal outputs say nothing of them.

    What another pass took away afterwards needs no proof.
    """
    paths = sorted({each.fold.path for each in folds if each.fold.applies and each.fold.path in in_both})
    unreached = [
        path for path in paths if path and not any(f"{inside}.".startswith(f"{path}.") for inside in run_by_example)
    ]
    if unreached:
        raise PluginError(
            f"folds of {len(unreached)} modules are not proved, because the example does not run them: "
            f"{', '.join(unreached)}. {_blame(folds, unreached[0])}Nothing was written; prove them on an example that "
            "runs them, or add a pass that takes them away, or leave out the pass"
        )


def _demand_equality(report: FoldReport) -> None:
    # A module at fault shows in all outputs after it, so modules are blamed first.
    for differences, noun in ((report.modules, "the module"), (report.outputs, "the model's")):
        wrong = [each for each in differences if not each.is_within]
        if wrong:
            # The precision that is measured first shows mistakes best.
            worst = max((each for each in wrong if each.precision == wrong[0].precision), key=badness)
            raise PluginError(
                f"folding changed {noun} {worst.where}: in {worst.precision} it differs by {worst.absolute:.3g} "
                f"({worst.relative:.3g} of 1 + magnitude, at most {worst.tolerance:.3g} is rounding). "
                f"{_blame(report.folds, worst.where)}Nothing was written; leave out the pass at fault"
            )


def _blame(folds: Sequence[PassFold], where: str) -> str:
    """Return a sentence that names the passes at work in a place; in the outputs, all are."""
    applied = [each for each in folds if each.fold.applies]
    inside = [each for each in applied if where and f"{each.fold.path}.".startswith(f"{where}.")]
    by = sorted({each.by for each in inside or applied})
    return f"It was folded by {', '.join(by)}. " if by else ""
