"""Whether two models give the same: their outputs on one input, and parts of them on the inputs that one has.

Every output is held against the other model's. What holds no tensor, or something that cannot be compared, proves
nothing and is an error. Maps of a head that hold some of a level's outputs are compared put together.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from enum import Enum
from functools import partial
from math import inf, isnan
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from detloom.detector import Detector
from detloom.errors import PluginError
from detloom.interfaces import Head
from detloom.ops.maps import whole_maps
from detloom.structures import HeadMaps

__all__ = ["Comparison", "Difference", "Run", "badness", "called", "compare", "default_run", "named_tensors"]

Run = Callable[[nn.Module, Tensor], object]

PLAIN = (bool, int, complex, str, bytes, Enum, torch.dtype, torch.device, type(None))


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
class Comparison:
    """What was measured in one precision, of parts and of the whole."""

    modules: tuple[Difference, ...]
    outputs: tuple[Difference, ...]


@torch.no_grad()
def compare(
    original: nn.Module,
    folded: nn.Module,
    example: Tensor,
    *,
    paths: set[str],
    run: Run,
    tolerance: float,
    blame: Callable[[str], str],
) -> Comparison:
    """Return the differences of two models, and of the parts at some paths.

    Args:
        original: The model as it was.
        folded: What came of it.
        example: Input of both.
        paths: Parts of both that are compared on the input that the original one has; the example must run them.
        run: What is compared of the whole.
        tolerance: Largest difference over 1 + magnitude.
        blame: A sentence that names the passes which folded a path, for messages; an empty path is the whole.

    Raises:
        PluginError: The folded form fails or has outputs of another form, or something holds nothing to compare.
    """
    precision = str(example.dtype).removeprefix("torch.")
    calls = _Calls(original, paths)
    try:
        expected = run(original, example)
    finally:
        calls.close()
    found = _again(lambda: run(folded, example), "the model", blame(""))
    modules = []
    for path in sorted(calls.outputs):
        args, kwargs = calls.inputs[path]
        part = folded.get_submodule(path)
        again = _together(part, _again(partial(part, *args, **kwargs), path, blame(path)))
        before = _together(original.get_submodule(path), calls.outputs[path])
        worst = max(_differences(before, again, path, precision, tolerance), key=badness)
        modules.append(replace(worst, where=path))
    return Comparison(tuple(modules), tuple(_differences(expected, found, "output", precision, tolerance)))


@torch.no_grad()
def called(model: nn.Module, example: Tensor, run: Run) -> set[str]:
    """Return the paths of the modules that a model runs."""
    found: set[str] = set()
    handles = [
        module.register_forward_pre_hook(lambda _, __, path=path: found.add(path))
        for path, module in model.named_modules(remove_duplicate=False)
    ]
    try:
        run(model, example)
    finally:
        for handle in handles:
            handle.remove()
    return found


def default_run(model: nn.Module, example: Tensor) -> object:
    """Return a model's output, and a detector's decoded boxes too."""
    output = model(example)
    if isinstance(model, Detector) and isinstance(output, HeadMaps):
        predictions = model.head.decode(output.lead)
        # In cells, as boxes are predicted: a corner near 0 of a box across the picture has the rounding of its size.
        boxes_in_cells = predictions.boxes_BP4 / predictions.priors.strides_P[:, None]
        return {"maps": _together(model.head, output), "boxes_in_cells": boxes_in_cells}
    return _together(model, output)


def badness(difference: Difference) -> float:
    """Return how large a difference is for an order by size; what is no number is the largest."""
    return inf if isnan(difference.relative) else difference.relative


def named_tensors(value: object, where: str) -> list[tuple[str, Tensor]]:
    """Return the tensors of a nested value, and where each stands.

    Raises:
        PluginError: There is something in it of which it is not known whether it holds tensors.
    """
    return [(name, leaf) for name, leaf in _leaves(value, where) if isinstance(leaf, Tensor)]


def _together(module: nn.Module, output: object) -> object:
    """Return what a module gave; of a head with several maps a level, one of each."""
    if not isinstance(module, Head) or not isinstance(output, HeadMaps) or len(output.lead) == module.traits.levels:
        return output
    return replace(output, lead=whole_maps(module.decode_spec(), output.lead))


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


def _again(call: Callable[[], object], what: str, blame: str) -> object:
    try:
        return call()
    except Exception as error:
        # The original ran, so it is the fold that is at fault.
        raise PluginError(
            f"after folding, {what} cannot be run: {type(error).__name__}: {error}. {blame}Nothing was written; "
            "other code may read what a pass took away: leave out the pass at fault"
        ) from error


def _differences(
    expected: object,
    found: object,
    where: str,
    precision: str,
    tolerance: float,
) -> Iterator[Difference]:
    before, after = list(_leaves(expected, where)), list(_leaves(found, where))
    if [_form(each) for each in before] != [_form(each) for each in after]:
        raise PluginError(f"folding changed the form of {where}: {_forms(before)} became {_forms(after)}")
    pairs = [
        (name, a, b)
        for (name, a), (_, b) in zip(before, after, strict=True)
        if isinstance(a, Tensor) and isinstance(b, Tensor)
    ]
    if not any(a.numel() for _, a, _ in pairs):
        raise PluginError(
            f"nothing is proved: {where} holds no number to compare, it is {_forms(before)}; prove it on another "
            "example, or return tensors"
        )
    for name, a, b in pairs:
        distance = (a.double() - b.double()).abs()
        relative = distance / (1 + a.double().abs().clamp(min=_root_mean_square(a)))
        yield Difference(name, precision, _largest(distance), _largest(relative), tolerance)


def _leaves(value: object, where: str) -> Iterator[tuple[str, object]]:
    """Return the tensors and plain values of a nested value, and where each stands."""
    if isinstance(value, float):
        # It may be computed from what is compared, and then has its rounding.
        yield where, torch.tensor(value, dtype=torch.float64)
    elif isinstance(value, (Tensor, *PLAIN)):
        yield where, value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from _leaves(each, f"{where}.{key}")
    elif is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            yield from _leaves(getattr(value, field.name), f"{where}.{field.name}")
    elif isinstance(value, list | tuple):
        for index, each in enumerate(value):
            yield from _leaves(each, f"{where}.{index}")
    else:
        raise PluginError(
            f"nothing is proved: {where} is a {type(value).__name__}, whose tensors cannot be found; tensors in "
            "tuples, lists, mappings and dataclasses can be compared (in Python, `run` says what is)"
        )


def _form(named: tuple[str, object]) -> tuple[str, object]:
    """Return what must be the same before and after: the shape of a tensor, a plain value itself."""
    name, leaf = named
    return name, leaf.shape if isinstance(leaf, Tensor) else repr(leaf)


def _forms(named: Sequence[tuple[str, object]]) -> str:
    return (
        ", ".join(f"{name} {list(leaf.shape) if isinstance(leaf, Tensor) else repr(leaf)}" for name, leaf in named)
        or "nothing"
    )


def _largest(tensor: Tensor) -> float:
    return float(tensor.max()) if tensor.numel() else 0.0


def _root_mean_square(tensor: Tensor) -> float:
    return float(tensor.double().square().mean().sqrt()) if tensor.numel() else 0.0
