"""Heads' outputs and objects for the checks, drawn from generators: the same in every run.

Shape letters: B images, P priors, C classes, L levels, A priors of a cell, R bins, T targets, M matches.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from detloom.ops.boxes import cxcywh_to_xyxy
from detloom.structures import Assignment, HeadTraits, Predictions, Priors, Targets

__all__ = [
    "EDGES",
    "LAYOUTS",
    "Batch",
    "Layout",
    "map_predictions",
    "random_targets",
    "rows_of",
    "some_matches",
    "targets_of",
    "twice",
    "with_boxes_of_distributions",
]

SIZE = (64, 128)
NUM_CLASSES = 3

Row = tuple[float, float, float, float, float]
"""Label and corners of an object."""


@dataclass(frozen=True, slots=True)
class Layout:
    """A kind of head.

    Attributes:
        levels: How many; strides are 8, 16, ...
        anchors: Priors of a cell that have sizes; 0 for points.
        objectness: Whether predictions carry one.
        bins: Bins of the distribution of a box's sides, or 0.
    """

    levels: int
    anchors: int
    objectness: bool
    bins: int = 0

    def __str__(self) -> str:
        """Return it in words."""
        anchors = f"{self.anchors} {'anchor' if self.anchors == 1 else 'anchors'} a cell"
        priors = anchors if self.anchors else "points"
        bins = f", distributions of {self.bins} bins" if self.bins else ""
        levels = f"{self.levels} {'level' if self.levels == 1 else 'levels'}"
        return f"{priors} on {levels}, {'with' if self.objectness else 'without'} objectness{bins}"

    def traits(self, *, one_to_one: bool = False) -> HeadTraits:
        """Return what such a head says of itself."""
        return HeadTraits(bool(self.anchors), self.objectness, self.bins, self.levels, one_to_one)

    def priors(self, *, without: Sequence[int] = ()) -> Priors:
        """Return the priors, without those of some levels."""
        laid = _laid(self.levels, self.anchors, tuple(without))
        # They are laid once; what a component changes in place must not reach the next batch.
        return replace(
            laid,
            centers_P2=laid.centers_P2.clone(),
            sizes_P2=laid.sizes_P2.clone(),
            strides_P=laid.strides_P.clone(),
            level_P=laid.level_P.clone(),
        )

    def predictions(
        self, num_images: int, *, seed: int = 0, priors: Priors | None = None, num_classes: int = NUM_CLASSES
    ) -> Predictions:
        """Return random predictions near their priors."""
        generator = torch.Generator().manual_seed(seed)
        priors = self.priors() if priors is None else priors
        shape = (num_images, priors.num_priors)
        size_BP2 = priors.sizes_P2 * (torch.rand((*shape, 2), generator=generator) + 0.5)
        shift_BP2 = torch.rand((*shape, 2), generator=generator) - 0.5
        center_BP2 = priors.centers_P2 + priors.strides_P[:, None] * shift_BP2
        found = Predictions(
            boxes_BP4=cxcywh_to_xyxy(torch.cat((center_BP2, size_BP2), dim=-1)),
            class_logits_BPC=torch.randn((*shape, num_classes), generator=generator),
            objectness_BP=torch.randn(shape, generator=generator) if self.objectness else None,
            priors=priors,
            # Small distances are likelier, so that boxes are about as large as elsewhere.
            distribution_BP4R=torch.randn((*shape, 4, self.bins), generator=generator) - torch.arange(self.bins) / 2
            if self.bins
            else None,
        )
        return with_boxes_of_distributions(found)

    def batch(self, targets: Targets, *, without: Sequence[int] = (), num_classes: int = NUM_CLASSES) -> "Batch":
        """Return lead predictions, and auxiliary ones without some levels, for the images of targets."""
        lead = self.predictions(targets.num_images, seed=1, num_classes=num_classes)
        priors = self.priors(without=without)
        auxiliary = self.predictions(targets.num_images, seed=2, priors=priors, num_classes=num_classes)
        return Batch(lead, auxiliary, targets)


@cache
def _laid(levels: int, anchors: int, without: tuple[int, ...]) -> Priors:
    strides = [8 * 2**level for level in range(levels)]
    shapes = [(SIZE[0] // stride, SIZE[1] // stride) for stride in strides]
    if anchors:
        # From wide to tall, about two cells large.
        shape_A2 = torch.tensor([[2.0 - 0.75 * k, 1.25 + 0.75 * k] for k in range(anchors)])
    else:
        shape_A2 = torch.full((1, 2), 4.0)
    sizes_LA2 = torch.tensor(strides)[:, None, None] * shape_A2
    laid = [None if level in without else shape for level, shape in enumerate(shapes)]
    return Priors.on_grids(laid, strides, sizes_LA2)


LAYOUTS = (
    Layout(levels=3, anchors=2, objectness=True),
    Layout(levels=4, anchors=3, objectness=False),
    Layout(levels=1, anchors=3, objectness=True),
    Layout(levels=3, anchors=0, objectness=True),
    Layout(levels=4, anchors=0, objectness=False, bins=9),
    Layout(levels=1, anchors=0, objectness=False),
)


@dataclass(frozen=True, slots=True)
class Batch:
    """What an assigner is given."""

    lead: Predictions
    auxiliary: Predictions
    targets: Targets

    def alone(self, image: int) -> tuple["Batch", int]:
        """Return the batch of one of its images, and the index of that image's first target."""
        of_image_T = (self.targets.image_T == image).nonzero().flatten()
        count = len(of_image_T)
        targets = replace(
            self.targets,
            boxes_T4=self.targets.boxes_T4[of_image_T],
            labels_T=self.targets.labels_T[of_image_T],
            image_T=torch.zeros(count, dtype=torch.int64),
            num_images=1,
            most_per_image=count,
        )

        def only(values: Tensor) -> Tensor:
            return values[image : image + 1].clone()

        return Batch(map_predictions(self.lead, only), map_predictions(self.auxiliary, only), targets), int(
            (self.targets.image_T < image).sum()
        )

    def mapped(self, change: Callable[[Tensor], Tensor], fields: Sequence[str] = ()) -> "Batch":
        """Return the batch with other predictions."""
        return replace(
            self,
            lead=map_predictions(self.lead, change, fields),
            auxiliary=map_predictions(self.auxiliary, change, fields),
        )


def map_predictions(
    predictions: Predictions, change: Callable[[Tensor], Tensor], fields: Sequence[str] = ()
) -> Predictions:
    """Return predictions each of whose tensors, or those named, is changed."""
    names = fields or ("boxes_BP4", "class_logits_BPC", "objectness_BP", "distribution_BP4R")
    values = {name: getattr(predictions, name) for name in names}
    changed: dict[str, Any] = {name: change(value) for name, value in values.items() if value is not None}
    return replace(predictions, **changed)


def with_boxes_of_distributions(predictions: Predictions) -> Predictions:
    """Return predictions whose boxes are the means of their distributions, where they have some.

    So it is on a head that learns distributions: what reaches a box reaches its distribution.
    """
    distribution_BP4R, priors = predictions.distribution_BP4R, predictions.priors
    if distribution_BP4R is None:
        return predictions
    bins_R = torch.arange(distribution_BP4R.shape[-1], dtype=torch.float32)
    distance_BP4 = (distribution_BP4R.softmax(dim=-1) * bins_R).sum(dim=-1) * priors.strides_P[:, None]
    corners_BP4 = distance_BP4 * torch.tensor([-1.0, -1.0, 1.0, 1.0])
    return replace(predictions, boxes_BP4=priors.centers_P2.repeat(1, 2) + corners_BP4)


def targets_of(images: Sequence[Sequence[Row]]) -> Targets:
    """Return objects given as label and corners."""
    rows = [torch.tensor(image).reshape(-1, 5).float() for image in images]
    return Targets.from_lists([row[:, 1:] for row in rows], [row[:, 0] for row in rows], SIZE)


def random_targets(counts: Sequence[int], *, seed: int = 0) -> Targets:
    """Return objects of many sizes, none at the limits and none equal."""
    generator = torch.Generator().manual_seed(1000 + seed)
    limit_2 = torch.tensor([SIZE[1], SIZE[0]], dtype=torch.float32)
    boxes, labels = [], []
    for count in counts:
        # Sides from 1/16 to 7/10 of the image.
        size_N2 = limit_2 * (torch.rand((count, 2), generator=generator) * 2.4 - 2.77).exp()
        corner_N2 = (limit_2 - size_N2) * torch.rand((count, 2), generator=generator)
        boxes.append(torch.cat((corner_N2, corner_N2 + size_N2), dim=1))
        labels.append(torch.randint(0, NUM_CLASSES, (count,), generator=generator))
    return Targets.from_lists(boxes, labels, SIZE)


def twice(targets: Targets) -> Targets:
    """Return the objects of the same images twice over."""
    return replace(
        targets,
        boxes_T4=torch.cat((targets.boxes_T4, targets.boxes_T4)),
        labels_T=torch.cat((targets.labels_T, targets.labels_T)),
        image_T=torch.cat((targets.image_T, targets.image_T + targets.num_images)),
        num_images=2 * targets.num_images,
    )


EDGES: dict[str, Sequence[Sequence[Row]]] = {
    "hundreds": [
        [
            (i % 3, x + 1, y + 1, x + 7 + i % 7, y + 10)
            for i in range(210)
            for x, y in [(2.3 * (i % 50), 1.1 * (i // 6))]
        ],
        [(1, 10, 10, 40, 30)],
    ],
    "equal": [[*[(0.0, 20.0, 20.0, 40.0, 40.0)] * 3, (1, 20, 20, 40, 40)]],
    "border": [[(0, 0, 0, 20, 20), (1, 112, 48, 128, 64), (2, 0, 40, 9, 64), (0, 30, 0, 60, 5)]],
    "large": [[(0, -20, -20, 148, 84), (1, 0, 0, 128, 64)]],
    "thin": [[(0, 30, 10, 31, 50), (1, 5, 5, 6, 6), (2, 10, 40, 80, 41)]],
    "one class": [[(2, 4.0 * i + 3, 10, 4.0 * i + 23, 40) for i in range(15)]],
    "none in some images": [[], [(1, 10, 10, 40, 30), (0, 50, 20, 90, 60)], []],
    "none": [[], []],
}


def rows_of(assignment: Assignment) -> list[tuple[int, int, int, float]]:
    """Return image, prior, target and quality of the matches, sorted."""
    columns = (assignment.image_M, assignment.prior_M, assignment.target_M, assignment.quality_M)
    return sorted(zip(*(column.tolist() for column in columns), strict=True))


def some_matches(predictions: Predictions, targets: Targets, *, each: int = 3) -> Assignment:
    """Return matches of every target with the nearest priors, no prior twice, of various qualities."""
    center_T2 = (targets.boxes_T4[:, :2] + targets.boxes_T4[:, 2:]) / 2
    distance_TP = (predictions.priors.centers_P2 - center_T2[:, None]).norm(dim=-1)
    found: dict[tuple[int, int], int] = {}
    for target, image in enumerate(targets.image_T.tolist()):
        for prior in distance_TP[target].argsort(stable=True)[:each].tolist():
            found.setdefault((image, prior), target)
    key_M2 = torch.tensor(list(found), dtype=torch.int64).reshape(-1, 2)
    generator = torch.Generator().manual_seed(3)
    return Assignment(
        image_M=key_M2[:, 0],
        prior_M=key_M2[:, 1],
        target_M=torch.tensor(list(found.values()), dtype=torch.int64),
        quality_M=torch.rand(len(found), generator=generator) * 0.6 + 0.4,
    )
