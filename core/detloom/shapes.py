"""Shapes without numbers: build, fold and count networks on the meta device, fast.

Torch's meta device runs element-wise operations through reference implementations in Python, whose first call imports
the compiler: seconds, of which a check has none to spare. Their shapes follow from broadcasting alone, so they are
answered here.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

__all__ = ["ShapesOnly", "shapes_only"]

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
        made = _by_shape(func, args, kwargs or {})
        if made is None:
            made = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.operations += formula(*args, **(kwargs or {}), out_val=made)
        return made


def _by_shape(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Return the result of an operation whose shape is that of its inputs, or None."""
    name = func.overloadpacket.__name__
    if name in _KNOWN and not kwargs:
        return _KNOWN[name](*args)
    if name in ("rand", "randn") and len(args) == 1:
        return torch.empty(args[0], **kwargs)
    tensors = [each for each in args if isinstance(each, Tensor)]
    if not tensors or kwargs or not all(each.is_meta for each in tensors):
        return None
    if torch.Tag.pointwise not in func.tags or len(func._schema.returns) != 1:  # noqa: SLF001 - there is no public way to ask
        return None
    return _element_wise(name, args, tensors)


def _element_wise(name: str, args: tuple[Any, ...], tensors: Sequence[Tensor]) -> Tensor | None:
    shape = _broadcast([each.shape for each in tensors])
    # Results of another type take torch's own way, and what does not fit is torch's to complain of.
    if shape is None or any(each.dtype != tensors[0].dtype for each in tensors):
        return None
    if name.endswith("_"):
        return tensors[0] if args[0] is tensors[0] and list(tensors[0].shape) == shape else None
    return None if name in _TO_BOOLEANS else tensors[0].new_empty(shape)


def _broadcast(shapes: Sequence[torch.Size]) -> list[int] | None:
    """Return the common shape, or None; torch's own function imports a computer algebra system."""
    columns = [{side for side in column if side != 1} for column in _sides_from_the_last(shapes)]
    return None if any(len(column) > 1 for column in columns) else [next(iter(each), 1) for each in columns][::-1]


def _sides_from_the_last(shapes: Sequence[torch.Size]) -> Iterator[tuple[int, ...]]:
    return zip_longest(*(reversed(shape) for shape in shapes), fillvalue=1)


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


def _convolved(  # noqa: PLR0917 - torch's own signature
    images: Tensor,
    kernel: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Tensor | None:
    del output_padding
    if not (images.is_meta and kernel.is_meta and images.dtype == kernel.dtype and images.dim() == kernel.dim()):
        return None
    inputs, outputs = kernel.shape[1] * groups, kernel.shape[0]
    if transposed:
        inputs, outputs = outputs, inputs
    # Torch checks real tensors, not all of those of the meta device.
    if images.shape[1] != inputs or outputs % groups or (bias is not None and list(bias.shape) != [outputs]):
        raise RuntimeError(
            f"a convolution of {inputs} channels to {outputs} in {groups} groups is given {images.shape[1]} channels"
            + ("" if bias is None else f" and a bias {list(bias.shape)}")
        )
    if transposed:
        return None
    sides = _window_sides(images.shape[2:], kernel.shape[2:], stride, padding, dilation)
    return images.new_empty([images.shape[0], kernel.shape[0], *sides]) if min(sides) > 0 else None


def _pooled(  # noqa: PLR0917 - torch's own signature
    images: Tensor,
    window: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    ceil_mode: bool = False,
) -> tuple[Tensor, Tensor] | None:
    if not images.is_meta or ceil_mode or not len(window) == len(padding) == len(dilation) == images.dim() - 2 == 2:
        return None
    if any(2 * pad > gap * (width - 1) + 1 for pad, width, gap in zip(padding, window, dilation, strict=True)):
        return None
    sides = _window_sides(images.shape[2:], window, stride or window, padding, dilation)
    shape = [*images.shape[:2], *sides]
    return (images.new_empty(shape), images.new_empty(shape, dtype=torch.int64)) if min(sides) > 0 else None


def _enlarged(images: Tensor, size: Sequence[int] | None, *_: object) -> Tensor | None:
    return None if size is None or not images.is_meta else images.new_empty([*images.shape[:2], *size])


def _summed(tensor: Tensor, axes: Sequence[int] | None = None, *rest: object) -> Tensor | None:
    if not tensor.is_meta or not tensor.is_floating_point() or not axes or rest:
        return None
    if any(not -tensor.dim() <= axis < tensor.dim() for axis in axes):
        return None
    gone = {axis % tensor.dim() for axis in axes}
    return tensor.new_empty([side for axis, side in enumerate(tensor.shape) if axis not in gone])


def _window_sides(
    sides: Sequence[int],
    window: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> list[int]:
    """Return the sides of what a window, moved over maps, leaves."""
    return [
        (side + 2 * pad - gap * (width - 1) - 1) // step + 1
        for side, width, step, pad, gap in zip(sides, window, stride, padding, dilation, strict=True)
    ]


def _normalised(images: Tensor, *rest: object) -> tuple[Tensor, Tensor, Tensor] | None:
    if not images.is_meta:
        return None
    for tensor in rest:
        if isinstance(tensor, Tensor) and list(tensor.shape) != [images.shape[1]]:
            # Torch checks real tensors, not those of the meta device.
            raise RuntimeError(f"a norm of {len(tensor)} channels is given {images.shape[1]}")
    return images.new_empty(images.shape), images.new_empty(0), images.new_empty(0)


_KNOWN: Mapping[str, Callable[..., Any]] = {
    "cat": _joined,
    "convolution": _convolved,
    "max_pool2d_with_indices": _pooled,
    "native_batch_norm": _normalised,
    "sum": _summed,
    "upsample_nearest2d": _enlarged,
    "_native_batch_norm_legit_no_training": _normalised,
}
