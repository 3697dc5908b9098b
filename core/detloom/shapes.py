"""Shapes without numbers: build, fold and count networks on the meta device, fast.

Torch's meta device runs element-wise operations through reference implementations in Python, whose first call imports
the compiler: seconds, of which a check has none to spare. Their shapes follow from broadcasting alone, so they are
answered here.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

__all__ = ["ShapesOnly", "shapes_only"]

_BATCH_NORMS = frozenset({"native_batch_norm", "_native_batch_norm_legit_no_training"})
_TO_BOOLEANS = frozenset({"eq", "ne", "lt", "le", "gt", "ge", "isnan", "isinf", "isfinite", "logical_not"})


@contextmanager
def shapes_only() -> Iterator["ShapesOnly"]:
    """Make and use tensors that have a shape and no content; yields what counts their operations."""
    with torch.device("meta"), ShapesOnly() as counter:
        yield counter


class ShapesOnly(TorchDispatchMode):
    """Answers element-wise operations of meta tensors by shape, and counts multiply-adds by torch's formulas.

    Attributes:
        operations: Of convolutions and products since the start, a multiply-add as two.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch types it not
        self.operations = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Torch would wrap the method below so that its first call imports the compiler; nothing is compiled here.
        return False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Return what an operation makes."""
        del types
        known = _by_shape(func, args, kwargs or {})
        if known is not None:
            return known
        made = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.operations += formula(*args, **(kwargs or {}), out_val=made)
        return made


def _by_shape(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Return the result of an operation whose shape is that of its inputs, or None."""
    name = func.overloadpacket.__name__
    if name == "cat" and not kwargs:
        return _joined(*args)
    tensors = [each for each in args if isinstance(each, Tensor)]
    if not tensors or kwargs or not all(each.is_meta for each in tensors):
        return None
    if name in _BATCH_NORMS:
        return torch.empty_like(tensors[0]), tensors[0].new_empty(0), tensors[0].new_empty(0)
    if torch.Tag.pointwise not in func.tags or len(func._schema.returns) != 1:  # noqa: SLF001 - there is no public way to ask
        return None
    if name.endswith("_"):
        return args[0]
    # Results of another type take torch's own way.
    same_type = name not in _TO_BOOLEANS and all(each.dtype == tensors[0].dtype for each in tensors)
    return tensors[0].new_empty(_broadcast([each.shape for each in tensors])) if same_type else None


def _broadcast(shapes: Sequence[torch.Size]) -> list[int]:
    """Return the common shape; torch's own function imports a computer algebra system."""
    sides = zip_longest(*(reversed(shape) for shape in shapes), fillvalue=1)
    return [next((side for side in column if side != 1), 1) for column in sides][::-1]


def _joined(tensors: Sequence[Tensor], axis: int = 0) -> Tensor | None:
    first = tensors[0]
    fits = all(
        each.is_meta and each.dtype == first.dtype and _without(each.shape, axis) == _without(first.shape, axis)
        for each in tensors
    )
    if not fits:
        return None
    shape = list(first.shape)
    shape[axis] = sum(each.shape[axis] for each in tensors)
    return first.new_empty(shape)


def _without(shape: torch.Size, axis: int) -> list[int]:
    sides = list(shape)
    sides[axis] = 0
    return sides
