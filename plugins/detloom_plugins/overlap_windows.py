"""Pairs of a target and a prior that overlap enough, without looking at all pairs.

On a grid, priors of one size overlap a target by a given IoU within a window of cells about its
centre alone. The window follows from the sizes, so that the work grows with the pairs that count,
not with targets times priors.

Shape letters: P priors, T targets of the batch, R priors of a cell of each level, S = T x R windows
(target after target), s windows of a block, N cells of a window (padded).
"""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from operator import neg

import torch
from torch import Tensor

from detloom.structures import Grid, Priors

__all__ = ["Pairs", "nearest_of_each_size", "overlapping_pairs"]

# Pairs that are held at once: 1 MiB a tensor of float32, which a processor's cache holds.
PAIRS_AT_ONCE = 1 << 18

# Windows are this many cells wider than computed, so that rounding leaves no cell out.
MARGIN = 1e-3


@dataclass(frozen=True, slots=True)
class Pairs:
    """Some windows, side by side.

    Attributes:
        window_s: Index of each window; that of target ``t`` and the ``r``-th prior of a cell, counted over
            all levels, is ``t * R + r``.
        target_s: Its target.
        prior_sN: Index into the priors; 0 where there is no pair.
        overlap_sN: IoU of prior and target.
        is_pair_sN: Whether there is a pair, and its IoU reaches the threshold.
    """

    window_s: Tensor
    target_s: Tensor
    prior_sN: Tensor
    overlap_sN: Tensor
    is_pair_sN: Tensor


def overlapping_pairs(priors: Priors, boxes_T4: Tensor, threshold: float) -> Iterator[Pairs]:
    """Yield every pair of a prior and a target whose IoU is at least the threshold, once, in blocks.

    The device is asked once, for the numbers of cells of all windows, by which blocks are bounded.

    Args:
        priors: On grids.
        boxes_T4: Targets of the whole batch.
        threshold: Above 0.
    """
    windows = _Windows.of(priors, boxes_T4, threshold)
    count_S = windows.columns_S * windows.lines_S
    order_S = count_S.argsort(descending=True, stable=True)
    counts = count_S[order_S].long().tolist()
    start, end = 0, bisect_left(counts, 0, key=neg)
    # From the largest window down, so that windows of a block are of like size.
    while start < end:
        stop = min(end, start + max(1, PAIRS_AT_ONCE // counts[start]))
        yield windows.pairs(order_S[start:stop], counts[start], threshold)
        start = stop


def nearest_of_each_size(priors: Priors, boxes_T4: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``[T, R]`` priors of the cells nearest to each target's centre, and their IoU.

    Of priors of one size on a grid, no other overlaps the target more. Of equally near cells the
    first by row, then by column, is taken.
    """
    rows = _Rows.of(priors)
    center_T12 = ((boxes_T4[:, :2] + boxes_T4[:, 2:]) / 2)[:, None]
    cell_TR2 = (center_T12 / rows.stride_R[:, None] - 1).ceil()
    cell_TR2 = torch.minimum(cell_TR2.clamp(min=0), rows.shape_R2 - 1)
    target_T14 = boxes_T4[:, None]
    shared_TR2 = _shared(
        (cell_TR2 + 0.5) * rows.stride_R[:, None], rows.size_R2, target_T14[..., :2], target_T14[..., 2:]
    )
    overlap_TR = _overlap(shared_TR2.prod(dim=-1), rows.size_R2.prod(dim=-1) + _area(boxes_T4)[:, None])
    return rows.prior(cell_TR2[..., 0], cell_TR2[..., 1]), overlap_TR


@dataclass(frozen=True, slots=True)
class _Rows:
    """What is known of each prior of a cell of each level, before any target is looked at."""

    size_R2: Tensor
    shape_R2: Tensor  # Columns and lines of the grid.
    stride_R: Tensor
    first_R: Tensor
    per_cell_R: Tensor

    @classmethod
    def of(cls, priors: Priors) -> "_Rows":
        """Read the grids, asking nothing of the device."""
        device = priors.sizes_P2.device

        def filled(grid: Grid, *values: float) -> Tensor:
            # Filled on the device: a copy of numbers from the host would be waited for.
            return torch.stack([torch.full((grid.per_cell,), value, device=device) for value in values], dim=-1)

        grids = priors.grids
        return cls(
            size_R2=torch.cat([priors.sizes_P2[g.start : g.start + g.per_cell] for g in grids]),
            shape_R2=torch.cat([filled(g, float(g.width), float(g.height)) for g in grids]),
            stride_R=torch.cat([filled(g, float(g.stride)) for g in grids])[:, 0],
            first_R=torch.cat([torch.arange(g.start, g.start + g.per_cell, device=device) for g in grids]),
            per_cell_R=torch.cat([filled(g, g.per_cell) for g in grids])[:, 0],
        )

    def prior(self, column_TR: Tensor, line_TR: Tensor) -> Tensor:
        """Return the index of the prior of each cell."""
        return self.first_R + (line_TR * self.shape_R2[:, 0] + column_TR).long() * self.per_cell_R


@dataclass(frozen=True, slots=True)
class _Windows:
    """Cells that a target's pairs can lie in; ``start`` and numbers of cells as float32."""

    rows: _Rows
    boxes_T4: Tensor
    start_S2: Tensor
    columns_S: Tensor
    lines_S: Tensor

    @classmethod
    def of(cls, priors: Priors, boxes_T4: Tensor, threshold: float) -> "_Windows":
        """Return the windows of all targets.

        With areas a and b, an IoU of at least t means an intersection of at least t (a + b) / (1 + t). Its
        height is at most that of the lower box, so that this asks for a width, and the other way round.
        """
        rows = _Rows.of(priors)
        low_T12, high_T12 = boxes_T4[:, None, :2], boxes_T4[:, None, 2:]
        area_TR = _area(boxes_T4)[:, None] + rows.size_R2.prod(dim=-1)
        least_TR2 = torch.minimum(high_T12 - low_T12, rows.size_R2)
        needed_TR2 = (threshold / (1 + threshold)) * area_TR[..., None] / least_TR2.flip(-1)
        half_R2, stride_R1 = rows.size_R2 / 2, rows.stride_R[:, None]
        first_TR2 = ((low_T12 + needed_TR2 - half_R2) / stride_R1 - 0.5 - MARGIN).ceil().clamp(min=0)
        last_TR2 = ((high_T12 - needed_TR2 + half_R2) / stride_R1 - 0.5 + MARGIN).floor()
        last_TR2 = torch.minimum(last_TR2, rows.shape_R2 - 1)
        # Rounding may deny a box as large as the prior what it just has.
        can_be_TR = (needed_TR2 <= least_TR2 * (1 + MARGIN)).all(dim=-1)
        side_TR2 = ((last_TR2 - first_TR2 + 1) * can_be_TR[..., None]).clamp(min=0)
        columns_S, lines_S = side_TR2.flatten(0, 1).unbind(-1)
        return cls(rows, boxes_T4, first_TR2.flatten(0, 1), columns_S, lines_S)

    def pairs(self, window_s: Tensor, width: int, threshold: float) -> Pairs:
        """Return the pairs of some windows, none of more cells than ``width``."""
        num_rows = len(self.rows.first_R)
        target_s, row_s = window_s // num_rows, window_s % num_rows
        columns_s1 = self.columns_S[window_s, None]
        cell_N = torch.arange(width, device=window_s.device)
        # Half a cell more, so that no quotient is rounded to the line before.
        line_sN = ((cell_N + 0.5) / columns_s1).floor()
        column_sN = cell_N - line_sN * columns_s1 + self.start_S2[window_s, :1]
        line_sN = line_sN + self.start_S2[window_s, 1:]

        box_s4, size_s2, stride_s1 = self.boxes_T4[target_s], self.rows.size_R2[row_s], self.rows.stride_R[row_s, None]
        x1_s1, y1_s1, x2_s1, y2_s1 = box_s4[..., None].unbind(1)
        w_s1, h_s1 = size_s2[..., None].unbind(1)
        shared_sN = _shared((column_sN + 0.5) * stride_s1, w_s1, x1_s1, x2_s1)
        shared_sN = shared_sN * _shared((line_sN + 0.5) * stride_s1, h_s1, y1_s1, y2_s1)
        overlap_sN = _overlap(shared_sN, w_s1 * h_s1 + _area(box_s4)[:, None])

        is_cell_sN = cell_N < columns_s1 * self.lines_S[window_s, None]
        cell_sN = (line_sN * self.rows.shape_R2[row_s, :1] + column_sN).long()
        prior_sN = self.rows.first_R[row_s, None] + cell_sN * self.rows.per_cell_R[row_s, None]
        return Pairs(
            window_s=window_s,
            target_s=target_s,
            prior_sN=torch.where(is_cell_sN, prior_sN, 0),
            overlap_sN=overlap_sN,
            is_pair_sN=is_cell_sN & (overlap_sN >= threshold),
        )


def _shared(center_X: Tensor, size_X: Tensor, low_X: Tensor, high_X: Tensor) -> Tensor:
    """Return what spans about a centre share with others; as exact where one holds the other as the smaller is."""
    half_X = size_X / 2
    inner_X = torch.minimum(size_X, high_X - low_X)
    return torch.minimum(inner_X, torch.minimum((high_X + half_X) - center_X, center_X - (low_X - half_X))).clamp(min=0)


def _overlap(shared_X: Tensor, areas_X: Tensor) -> Tensor:
    """Return the IoU of boxes whose areas add up to ``areas``."""
    return shared_X / (areas_X - shared_X)


def _area(boxes_X4: Tensor) -> Tensor:
    return (boxes_X4[..., 2] - boxes_X4[..., 0]) * (boxes_X4[..., 3] - boxes_X4[..., 1])
