"""Ranks that are the same on every device, equal values included.

``torch.topk`` leaves open which of several equal values it takes. Here a value and its position
make one integer, so that no two are equal and the first position wins.
"""

import torch
from torch import Tensor

__all__ = ["LAST_KEY", "is_least", "order_within", "ordered_key", "position_of", "smallest"]

LAST_KEY = torch.iinfo(torch.int64).max

_SHIFT = 32
_LOW_BITS = (1 << _SHIFT) - 1
_MAGNITUDE = 0x7FFFFFFF


def ordered_key(values_X: Tensor, positions_X: Tensor) -> Tensor:
    """Return int64 keys that sort by float32 value, then by position; NaN comes after infinity.

    Args:
        values_X: Taken as float32.
        positions_X: Below ``2**32``; broadcasts against the values.
    """
    # The sign bit of a NaN, or of a zero, means nothing, and would sort it first.
    clean_X = torch.where(values_X.isnan(), torch.nan, values_X.float() + 0.0)
    bits_X = clean_X.view(torch.int32)
    # Negative floats sort in reverse of their bits.
    ordered_X = torch.where(bits_X < 0, bits_X ^ _MAGNITUDE, bits_X).long()
    return (ordered_X << _SHIFT) | positions_X


def position_of(keys_X: Tensor) -> Tensor:
    """Return the positions that keys were made of."""
    return keys_X & _LOW_BITS


def smallest(values_XN: Tensor, count: int) -> Tensor:
    """Return the ``[..., count]`` positions of the smallest values of each row, smallest first."""
    positions_N = torch.arange(values_XN.shape[-1], device=values_XN.device)
    keys_XN = ordered_key(values_XN, positions_N)
    return position_of(keys_XN.topk(count, dim=-1, largest=False, sorted=True).values)


def order_within(group_X: Tensor, values_X: Tensor) -> Tensor:
    """Return the positions sorted by group, then by value, then by position; NaN comes last in its group.

    Args:
        group_X: From 0, below ``2**30``, one axis.
        values_X: Taken as float32.
    """
    # Without a position the keys of values lie within 32 bits, signed.
    value_X = ordered_key(values_X, torch.zeros_like(group_X)) >> _SHIFT
    return ((group_X << (_SHIFT + 1)) + value_X).argsort(stable=True)


def is_least(key_X: Tensor, place_X: Tensor, num_places: int) -> Tensor:
    """Return which keys are the smallest of their place; none that is ``LAST_KEY``.

    Args:
        key_X: From ``ordered_key``, so that no two of a place are equal.
        place_X: In ``[0, num_places)``, of the same shape.
        num_places: Number of places.
    """
    least = key_X.new_full((num_places,), LAST_KEY)
    least.scatter_reduce_(0, place_X.flatten(), key_X.flatten(), "amin")
    return (key_X != LAST_KEY) & (least[place_X] == key_X)
