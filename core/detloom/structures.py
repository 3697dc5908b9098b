"""The data that flows between components.

Boxes are xyxy, in pixels of the network's input, float32.

Shape letters: B images, C classes, H and W rows and columns, L levels, A priors of a cell,
P priors of all levels, T targets of the batch, M matches, N boxes of one image, R bins of a
box distribution.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor

from detloom.errors import DataError, DetloomError, PluginError

if TYPE_CHECKING:
    import supervision as sv

__all__ = [
    "Assignment",
    "Detections",
    "Extent",
    "FeatureSpec",
    "Grid",
    "HeadMaps",
    "HeadTraits",
    "PaddedTargets",
    "Predictions",
    "Priors",
    "Role",
    "Targets",
]


class Role(StrEnum):
    """What a feature level is for."""

    LEAD = "lead"
    AUXILIARY = "auxiliary"


class Extent(StrEnum):
    """What a number among the settings of a network measures, for those that scale it."""

    DEPTH = "depth"
    """Layers or blocks in a row."""
    WIDTH = "width"
    """Channels between computational blocks: of stems, transitions, stages and levels."""
    HIDDEN = "hidden"
    """Channels inside computational blocks."""
    IMAGE = "image"
    """Sides of the network's input, in pixels."""
    LENGTH = "length"
    """Lengths of objects, in pixels of the network's input."""


@dataclass(frozen=True, slots=True)
class FeatureSpec:
    """What a component says of one level that it produces.

    Attributes:
        channels: Width of the level.
        stride: Pixels of the network's input per cell.
        role: Whether predictions from this level are kept, or serve training alone.
    """

    channels: int
    stride: int
    role: Role = Role.LEAD


@dataclass(frozen=True, slots=True)
class HeadTraits:
    """What an assigner or a criterion may have to know of a head before it is built.

    Attributes:
        anchors: Whether priors have sizes of their own (else they are points).
        objectness: Whether predictions carry an objectness.
        distribution_bins: Bins of the distribution of each box side; 0 for none.
        levels: Number of lead levels.
        one_to_one: Whether the head is made to find each object once, so that nothing need be suppressed;
            its lead predictions ask for an assigner that gives a target one prior at most.
    """

    anchors: bool
    objectness: bool
    distribution_bins: int = 0
    levels: int = 3
    one_to_one: bool = False


@dataclass(frozen=True, slots=True)
class HeadMaps:
    """Raw maps ``[B, channels, H, W]``, one of each level, finest first.

    ``auxiliary`` is empty for a head without auxiliary inputs, and in evaluation mode.
    """

    lead: tuple[Tensor, ...]
    auxiliary: tuple[Tensor, ...] = ()


@dataclass(frozen=True, slots=True)
class Grid:
    """Where the priors of one level lie: ``per_cell`` priors in each of ``height * width`` cells.

    Attributes:
        start: Index of the level's first prior among the priors of all levels.
        level: Place of the level among the head's lead levels, from 0.
    """

    height: int
    width: int
    stride: int
    per_cell: int
    start: int
    level: int

    @property
    def num_priors(self) -> int:
        """Return the number of priors of this level."""
        return self.height * self.width * self.per_cell

    @property
    def span(self) -> slice:
        """Return the level's slice of any tensor with a ``P`` axis."""
        return slice(self.start, self.start + self.num_priors)


@dataclass(frozen=True, slots=True)
class Priors:
    """Where predictions start from: anchors, or points.

    Levels come finest first; within a level the order is row, column, prior of the cell, so that
    prior ``k`` of cell ``(row, column)`` has index ``start + (row * width + column) * per_cell + k``.

    Attributes:
        centers_P2: Centres of the cells, x and y in pixels.
        sizes_P2: Widths and heights in pixels: of the anchor, or a nominal size for points.
        strides_P: Stride of each prior's level, float32.
        level_P: Level of each prior among the head's lead levels, int64.
        grids: The same as plain numbers, for arithmetic on indices.
        num_levels: Number of the head's lead levels. Auxiliary outputs may stand on some of them alone;
            there are fewer grids then, which keep the numbers of their levels.
    """

    centers_P2: Tensor
    sizes_P2: Tensor
    strides_P: Tensor
    level_P: Tensor
    grids: tuple[Grid, ...]
    num_levels: int

    @classmethod
    def on_grids(
        cls,
        shapes: Sequence[tuple[int, int] | None],
        strides: Sequence[int],
        sizes_LA2: Tensor,
    ) -> Self:
        """Lay ``A`` priors of given sizes on every cell of every level.

        Args:
            shapes: Rows and columns of each level of the head; None for a level that has no priors here.
            strides: Stride of each level.
            sizes_LA2: Widths and heights in pixels; their device is the result's.
        """
        device = sizes_LA2.device
        per_cell = sizes_LA2.shape[1]
        grids: list[Grid] = []
        centers, sizes = [], []
        start = 0
        for level, (shape, stride) in enumerate(zip(shapes, strides, strict=True)):
            if shape is None:
                continue
            height, width = shape
            grid = Grid(height, width, stride, per_cell, start, level)
            grids.append(grid)
            start += grid.num_priors
            x_W = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) * stride
            y_H = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) * stride
            y_HW, x_HW = torch.meshgrid(y_H, x_W, indexing="ij")
            centers_HW2 = torch.stack((x_HW, y_HW), dim=-1)
            centers.append(centers_HW2.reshape(-1, 1, 2).expand(-1, per_cell, 2).reshape(-1, 2))
            sizes.append(sizes_LA2[level].expand(height * width, per_cell, 2).reshape(-1, 2))
        return cls(
            centers_P2=torch.cat(centers),
            sizes_P2=torch.cat(sizes).float(),
            strides_P=torch.cat([torch.full((grid.num_priors,), float(grid.stride), device=device) for grid in grids]),
            level_P=torch.cat([torch.full((grid.num_priors,), grid.level, device=device) for grid in grids]),
            grids=tuple(grids),
            num_levels=len(shapes),
        )

    @property
    def num_priors(self) -> int:
        """Return the number of priors of all levels."""
        return self.centers_P2.shape[0]

    @property
    def boxes_P4(self) -> Tensor:
        """Return the priors as boxes."""
        half_P2 = self.sizes_P2 / 2
        return torch.cat((self.centers_P2 - half_P2, self.centers_P2 + half_P2), dim=-1)


@dataclass(frozen=True, slots=True)
class Predictions:
    """What a head predicts for every prior of every image, decoded, float32.

    Attributes:
        boxes_BP4: Decoded boxes, not clipped.
        class_logits_BPC: Before the sigmoid.
        objectness_BP: Before the sigmoid, or None for heads without one.
        priors: Where the predictions start from.
        distribution_BP4R: Logits of the distances left, top, right, bottom, for heads that have them.
    """

    boxes_BP4: Tensor
    class_logits_BPC: Tensor
    objectness_BP: Tensor | None
    priors: Priors
    distribution_BP4R: Tensor | None = None

    @property
    def num_images(self) -> int:
        """Return the batch size."""
        return self.boxes_BP4.shape[0]

    @property
    def num_classes(self) -> int:
        """Return the number of classes."""
        return self.class_logits_BPC.shape[-1]

    def on_levels_of(self, priors: Priors) -> "Predictions":
        """Return the predictions of those levels alone that other priors of the head lie on.

        They have the indices of these priors, so that what is assigned to them can be learned there.

        Args:
            priors: Of auxiliary predictions, say, on all or some of the levels.

        Raises:
            PluginError: A level has other priors here than there.
        """
        mine = {grid.level: grid for grid in self.priors.grids}
        kept = [mine[grid.level] for grid in priors.grids if grid.level in mine]
        if [replace(grid, start=0) for grid in kept] != [replace(grid, start=0) for grid in priors.grids]:
            raise PluginError(
                f"auxiliary outputs must have priors as the lead ones on their levels, got {priors.grids} "
                f"for {self.priors.grids}"
            )
        if len(kept) == len(mine):
            return self

        def those(values_BPX: Tensor) -> Tensor:
            return torch.cat([values_BPX[:, grid.span] for grid in kept], dim=1)

        return Predictions(
            boxes_BP4=those(self.boxes_BP4),
            class_logits_BPC=those(self.class_logits_BPC),
            objectness_BP=None if self.objectness_BP is None else those(self.objectness_BP),
            priors=priors,
            distribution_BP4R=None if self.distribution_BP4R is None else those(self.distribution_BP4R),
        )

    def detach(self) -> "Predictions":
        """Return the same predictions without their gradients."""
        return replace(
            self,
            boxes_BP4=self.boxes_BP4.detach(),
            class_logits_BPC=self.class_logits_BPC.detach(),
            objectness_BP=None if self.objectness_BP is None else self.objectness_BP.detach(),
            distribution_BP4R=None if self.distribution_BP4R is None else self.distribution_BP4R.detach(),
        )


@dataclass(frozen=True, slots=True)
class PaddedTargets:
    """Targets as a rectangle, for maths over whole batches; ``G`` is the largest count of an image.

    Attributes:
        boxes_BG4: Zeros where there is no target.
        labels_BG: Zeros where there is no target.
        target_BG: Index into the flat targets, 0 where there is none.
        is_real_BG: Whether there is a target.
    """

    boxes_BG4: Tensor
    labels_BG: Tensor
    target_BG: Tensor
    is_real_BG: Tensor


@dataclass(frozen=True, slots=True)
class Targets:
    """The objects of a batch.

    Attributes:
        boxes_T4: Boxes, inside the image, of positive size.
        labels_T: Class indices from 0, int64.
        image_T: Index into the batch, int64, ascending.
        num_images: Batch size; images without objects count.
        image_size: Height and width of the network's input in pixels.
        most_per_image: The largest number of objects of one image, a plain number, so that
            padding asks nothing of the device.
    """

    boxes_T4: Tensor
    labels_T: Tensor
    image_T: Tensor
    num_images: int
    image_size: tuple[int, int]
    most_per_image: int

    @classmethod
    def from_lists(
        cls,
        boxes: Sequence[Tensor],
        labels: Sequence[Tensor],
        image_size: tuple[int, int],
    ) -> Self:
        """Collect the ``[N, 4]`` boxes and ``[N]`` labels of each image."""
        counts = [len(each) for each in boxes]
        if not counts:
            raise ValueError("Targets need at least one image")
        return cls(
            boxes_T4=torch.cat([each.reshape(-1, 4) for each in boxes]).float(),
            labels_T=torch.cat(list(labels)).long(),
            image_T=torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)),
            num_images=len(counts),
            image_size=image_size,
            most_per_image=max(counts),
        )

    @property
    def num_targets(self) -> int:
        """Return the number of objects in the batch."""
        return self.boxes_T4.shape[0]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Targets":
        """Return the targets on another device."""
        return replace(
            self,
            boxes_T4=self.boxes_T4.to(device, non_blocking=non_blocking),
            labels_T=self.labels_T.to(device, non_blocking=non_blocking),
            image_T=self.image_T.to(device, non_blocking=non_blocking),
        )

    def in_order(self) -> "Targets":
        """Return the same targets sorted by image, label and box.

        What ties are settled by position is then the same in whatever order an image lists its objects.
        """
        order_T = torch.arange(self.num_targets, device=self.boxes_T4.device)
        for key_T in (*self.boxes_T4.unbind(1), self.labels_T, self.image_T):
            order_T = order_T[key_T[order_T].argsort(stable=True)]
        return replace(
            self, boxes_T4=self.boxes_T4[order_T], labels_T=self.labels_T[order_T], image_T=self.image_T[order_T]
        )

    def padded(self) -> PaddedTargets:
        """Return the targets as a rectangle of ``num_images x most_per_image``."""
        device = self.boxes_T4.device
        first_B = torch.searchsorted(self.image_T, torch.arange(self.num_images, device=device))
        index_T = torch.arange(self.num_targets, device=device)
        slot_T = index_T - first_B[self.image_T]
        shape = (self.num_images, self.most_per_image)
        where = (self.image_T, slot_T)
        return PaddedTargets(
            boxes_BG4=self.boxes_T4.new_zeros((*shape, 4)).index_put(where, self.boxes_T4),
            labels_BG=self.labels_T.new_zeros(shape).index_put(where, self.labels_T),
            target_BG=index_T.new_zeros(shape).index_put(where, index_T),
            is_real_BG=torch.zeros(shape, dtype=torch.bool, device=device).index_put(
                where, torch.ones_like(slot_T, dtype=torch.bool)
            ),
        )


@dataclass(frozen=True, slots=True)
class Assignment:
    """Which priors learn which targets: one row a match, for the whole batch.

    Priors of no row are negatives, unless they are ignored. A prior may serve several targets where
    a method says so.

    Attributes:
        image_M: Index into the batch.
        prior_M: Index into the priors.
        target_M: Index into the flat targets.
        quality_M: Soft label in [0, 1]: the highest score that the prior should learn for the
            target; 1 where the method has hard labels. float32, without gradient.
        ignored_BP: Whether a prior without a match is no negative either, bool: it learns nothing.
            What it says of matched priors means nothing. None where nothing is ignored.
    """

    image_M: Tensor
    prior_M: Tensor
    target_M: Tensor
    quality_M: Tensor
    ignored_BP: Tensor | None = None

    @property
    def num_matches(self) -> int:
        """Return the number of matches."""
        return self.image_M.shape[0]


@dataclass(frozen=True, slots=True)
class Detections:
    """What was found in one picture, best first, in pixels of the original picture.

    Attributes:
        boxes_N4: xyxy, inside the picture.
        scores_N: In [0, 1], descending.
        labels_N: Class indices from 0.
        names: Class names, by index.
        image_size: Height and width of the original picture.
        source: Where the picture came from; a file name, or nothing for an array.
    """

    boxes_N4: Tensor
    scores_N: Tensor
    labels_N: Tensor
    names: tuple[str, ...]
    image_size: tuple[int, int]
    source: str | None = field(default=None)

    def __len__(self) -> int:
        """Return the number of boxes."""
        return self.boxes_N4.shape[0]

    def to_coco(self, image_id: int, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """Return the rows of a COCO result file: corner, width and height; pixels to a thousandth.

        Args:
            image_id: The data set's id of the picture.
            category_ids: The data set's id of each class index; from 1 when not given.

        Raises:
            DataError: There are more or fewer ids than classes.
        """
        if category_ids is not None and len(category_ids) != len(self.names):
            raise DataError(
                f"Detections.to_coco: category_ids has {len(category_ids)} ids for {len(self.names)} classes "
                f"({', '.join(self.names)}); give one for each, in this order, or none to count from 1"
            )
        ids = range(1, len(self.names) + 1) if category_ids is None else category_ids
        corner_N2, size_N2 = self.boxes_N4[:, :2], self.boxes_N4[:, 2:] - self.boxes_N4[:, :2]
        return [
            {
                "image_id": image_id,
                "category_id": ids[label],
                "bbox": [round(side, 3) for side in box],
                "score": round(score, 5),
            }
            for box, score, label in zip(
                torch.cat((corner_N2, size_N2), dim=1).tolist(),
                self.scores_N.tolist(),
                self.labels_N.tolist(),
                strict=True,
            )
        ]

    def to_supervision(self) -> "sv.Detections":
        """Return the same as ``supervision.Detections``.

        Raises:
            DetloomError: The supervision package is not installed.
        """
        try:
            import supervision as sv
        except ImportError as error:
            raise DetloomError(
                "Detections.to_supervision: the supervision package is not installed; "
                "`pip install 'detloom[supervision]'` installs it"
            ) from error
        labels_N = self.labels_N.cpu().numpy()
        return sv.Detections(
            xyxy=self.boxes_N4.cpu().numpy(),
            confidence=self.scores_N.cpu().numpy(),
            class_id=labels_N,
            data={"class_name": np.asarray(self.names, dtype=str)[labels_N]},
        )

    def _repr_html_(self) -> str:
        """Return a table of the boxes and, where the picture is a file, the picture with them."""
        from detloom.pictures import detections_html

        return detections_html(self)
