"""The branches of decoupled heads: a shared stem, then convolutions for classes and for boxes apart.

Shape letters: B images, H and W rows and columns.

References: Ge et al., YOLOX (2021), section 2.1; Li et al., YOLOv6 (2022), section 2.1, for the form with one
convolution a branch; Lin et al., Focal loss (2017), section 3.3, for biases from a prior.
"""

import math

import torch
from torch import Tensor, nn

from detloom.errors import RecipeError
from detloom_plugins.layers import Activation, ConvBlock

__all__ = ["PRIOR_PROBABILITY", "DecoupledBranches"]

PRIOR_PROBABILITY = 0.01
"""What classes and objectness are before training: Lin et al. (2017), section 4.1."""


class DecoupledBranches(nn.Module):
    """The branches of one level; its map holds the box, the objectness, if any, and the classes.

    Args:
        inputs: Channels of the level.
        num_classes: Number of classes.
        box_outputs: Channels of a box.
        objectness: Whether there is an objectness, which shares the branch of the box.
        width: Channels of both branches; 0 for those of the level.
        depth: 3x3 convolutions of each branch.
        activation: After each convolution but the last.
    """

    def __init__(
        self,
        inputs: int,
        num_classes: int,
        *,
        box_outputs: int,
        objectness: bool,
        width: int,
        depth: int,
        activation: Activation,
    ) -> None:
        super().__init__()
        if width < 0:
            raise RecipeError(f"width must be at least 1, or 0 for the width of each level, got {width}")
        width = width or inputs
        self.stem = ConvBlock(inputs, width, activation=activation)
        self.for_classes = _convs(width, depth, activation)
        self.for_boxes = _convs(width, depth, activation)
        self.classes = _rare(nn.Conv2d(width, num_classes, 1))
        self.box = nn.Conv2d(width, box_outputs, 1)
        self.objectness = _rare(nn.Conv2d(width, 1, 1)) if objectness else None

    def forward(self, level_BCHW: Tensor) -> Tensor:
        """Return box, objectness and classes of each cell."""
        stem_BCHW = self.stem(level_BCHW)
        classes_BCHW = self.classes(self.for_classes(stem_BCHW))
        boxes_BCHW = self.for_boxes(stem_BCHW)
        parts = [self.box(boxes_BCHW)]
        if self.objectness is not None:
            parts.append(self.objectness(boxes_BCHW))
        return torch.cat((*parts, classes_BCHW), dim=1)


def _convs(width: int, depth: int, activation: Activation) -> nn.Sequential:
    return nn.Sequential(*(ConvBlock(width, width, 3, activation=activation) for _ in range(depth)))


def _rare(conv: nn.Conv2d) -> nn.Conv2d:
    """Return the convolution with biases that start from a small probability."""
    if conv.bias is not None:
        nn.init.constant_(conv.bias, math.log(PRIOR_PROBABILITY / (1 - PRIOR_PROBABILITY)))
    return conv
