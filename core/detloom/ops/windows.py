"""Priors whose centres lie inside boxes, found by arithmetic on the grids instead of by looking at every prior.

The cells of a level whose centres a box holds are a window: some columns of some rows. So all pairs of a
box and a prior are known from four numbers a window, and are written out in blocks, as long as memory allows.

Shape letters: T boxes, L levels, S windows of a block, t boxes of a block, K pairs of a block.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from detloom.structures import Grid

__all__ = ["Pairs", "Windows", "center_squares", "pair_blocks", "windows_inside"]


@dataclass(frozen=True, slots=True)
class Windows:
    """The window of each box on each level; all int64.

    Prior ``k`` of row ``r`` of a window has index ``first + r * step + k``.

    Attributes:
        first_TL: Index of a window's first prior; meaningless where there is none.
        rows_TL: Number of rows.
        width_TL: Number of priors of a row; no window has rows of none.
        step_TL: Number of priors from one row to the next.
    """

    first_TL: Tensor
    rows_TL: Tensor
    width_TL: Tensor
    step_TL: Tensor


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pairs of a box and a prior, box after box; those of a box in the order of the priors.

    Attributes:
        boxes: The boxes of this block.
        box_K: Index into all boxes.
        prior_K: Index into the priors.
        first_t: Place of the first pair of each box of the block.
        count_t: Number of pairs of each box of the block.
    """

    boxes: slice
    box_K: Tensor
    prior_K: Tensor
    first_t: Tensor
    count_t: Tensor


def windows_inside(grids: Sequence[Grid], boxes_TL4: Tensor) -> Windows:
    """Return the priors whose centres lie strictly inside boxes; the device is asked nothing.

    Where strides are powers of two this is exact: a prior is in the window when its centre as the
    priors have it is greater than the low side of the box and less than its high side.

    Args:
        grids: Those of the priors.
        boxes_TL4: Boxes that may differ from level to level; an axis of one level serves all.
    """
    parts: list[tuple[Tensor, ...]] = []
    for grid, box_T4 in zip(grids, boxes_TL4.expand(-1, len(grids), 4).unbind(1), strict=True):
        x1_T, y1_T, x2_T, y2_T = (box_T4 / grid.stride - 0.5).unbind(1)
        column_T, columns_T = _between(x1_T, x2_T, grid.width)
        row_T, rows_T = _between(y1_T, y2_T, grid.height)
        first_T = grid.start + (row_T * grid.width + column_T) * grid.per_cell
        step_T = torch.full_like(first_T, grid.width * grid.per_cell)
        parts.append((first_T, rows_T * (columns_T > 0), columns_T * grid.per_cell, step_T))
    first_TL, rows_TL, width_TL, step_TL = (torch.stack(part, dim=1) for part in zip(*parts, strict=True))
    return Windows(first_TL, rows_TL, width_TL, step_TL)


def center_squares(grids: Sequence[Grid], boxes_T4: Tensor, radius: float) -> Tensor:
    """Return ``[T, L, 4]`` squares around the centres of boxes, ``radius`` strides of the level from centre to side."""
    center_T2 = (boxes_T4[:, :2] + boxes_T4[:, 2:]) / 2
    return torch.stack(
        [torch.cat((center_T2 - radius * grid.stride, center_T2 + radius * grid.stride), dim=1) for grid in grids],
        dim=1,
    )


def pair_blocks(windows: Windows, pairs_at_once: int) -> Iterator[Pairs]:
    """Return all pairs of a box and a prior of its windows, block after block of whole boxes.

    The device is asked once, for the numbers of pairs of all boxes.

    Args:
        windows: Of the boxes.
        pairs_at_once: The most pairs of a block, but that a box is never cut.
    """
    totals = (windows.rows_TL * windows.width_TL).sum(dim=1).cumsum(dim=0).cpu()
    start, before = 0, 0
    while start < len(totals):
        stop = max(start + 1, int(torch.searchsorted(totals, before + pairs_at_once, right=True)))
        total = int(totals[stop - 1])
        if total > before:
            yield _pairs(windows, slice(start, stop), total - before)
        start, before = stop, total


def _between(low_T: Tensor, high_T: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """Return the first whole number from 0 above ``low``, and how many from there lie below ``high`` and ``cells``."""
    first_T = (low_T.floor() + 1).clamp(0, cells).long()
    end_T = high_T.ceil().clamp(0, cells).long()
    return first_T, (end_T - first_T).clamp(min=0)


def _pairs(windows: Windows, block: slice, total: int) -> Pairs:
    first_S, rows_S, width_S, step_S = (
        each[block].flatten() for each in (windows.first_TL, windows.rows_TL, windows.width_TL, windows.step_TL)
    )
    count_S = rows_S * width_S
    offset_S = count_S.cumsum(dim=0) - count_S
    # The total is given so that the device is not asked for it again.
    window_K = torch.repeat_interleave(count_S, output_size=total)
    place_K = torch.arange(total, device=first_S.device)
    row_K = (place_K - offset_S[window_K]) // width_S[window_K]
    prior_K = place_K + (first_S - offset_S)[window_K] + row_K * (step_S - width_S)[window_K]
    levels = windows.first_TL.shape[1]
    return Pairs(
        boxes=block,
        box_K=block.start + window_K // levels,
        prior_K=prior_K,
        first_t=offset_S[::levels],
        count_t=count_S.view(-1, levels).sum(dim=1),
    )
