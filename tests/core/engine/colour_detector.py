"""A detector without training: it sees cells of 8 x 8 pixels that are red (class 0) or green (class 1)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from detloom.decode_spec import DecodeSpec
from detloom.detector import Detector
from detloom.interfaces import Assigner, Backbone, Criterion, Head
from detloom.recipe import Recipe
from detloom.structures import Assignment, FeatureSpec, HeadMaps, HeadTraits, Predictions, Priors, Targets

CELL = 8
NAMES = ("red", "green")


class Cells(Backbone):
    """Mean colours of cells."""

    def __init__(self) -> None:
        super().__init__()
        self.out_specs = (FeatureSpec(3, CELL),)
        self.batches: list[tuple[int, ...]] = []

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        self.batches.append(tuple(images_BCHW.shape))
        return (nn.functional.avg_pool2d(images_BCHW, CELL),)


class Colours(Head):
    """A box of one cell for each cell; how sure depends on the colour."""

    def __init__(self) -> None:
        super().__init__()
        self.num_classes = len(NAMES)
        self.traits = HeadTraits(anchors=False, objectness=False, levels=1)
        self.slope = nn.Parameter(torch.tensor(20.0))

    def forward(self, levels: Sequence[Tensor]) -> HeadMaps:
        return HeadMaps((levels[0],))

    def decode(self, maps: Sequence[Tensor]) -> Predictions:
        (cells_B3HW,) = maps
        height, width = cells_B3HW.shape[2:]
        priors = Priors.on_grids([(height, width)], [CELL], torch.full((1, 1, 2), float(CELL)))
        red_BP, green_BP, blue_BP = cells_B3HW.float().flatten(2).unbind(1)
        purity_BPC = torch.stack((red_BP - green_BP - blue_BP, green_BP - red_BP - blue_BP), -1)
        boxes_BP4 = priors.boxes_P4.expand(len(cells_B3HW), -1, -1)
        return Predictions(boxes_BP4, (purity_BPC - 0.5) * self.slope, None, priors)

    def decode_spec(self) -> DecodeSpec:
        raise NotImplementedError


class Nobody(Assigner):
    """Assigns nothing: this detector is not trained."""

    def assign(self, predictions: Predictions, targets: Targets) -> Assignment:
        raise NotImplementedError


class Nothing(Criterion):
    """Costs nothing, for the same reason."""

    def losses(self, predictions: Predictions, assignment: Assignment, targets: Targets) -> dict[str, Tensor]:
        raise NotImplementedError


def colour_detector(recipe: Recipe | None = None) -> Detector:
    """Return the detector."""
    return Detector(Cells(), None, Colours(), Nobody(), Nothing(), names=NAMES, recipe=recipe)
