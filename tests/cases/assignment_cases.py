"""What tests of assigners are given, and how they read what comes back."""

from collections.abc import Sequence

import torch
from torch import Tensor

from detloom.structures import Assignment, Predictions, Priors, Targets

__all__ = ["ANCHORS_LA2", "HEIGHT", "WIDTH", "predictions", "rows", "targets"]

HEIGHT, WIDTH = 64, 96
ANCHORS_LA2 = torch.tensor([[[8.0, 8.0], [16.0, 8.0]], [[24.0, 40.0], [64.0, 64.0]]])


def predictions(num_images: int, *, sizes_LA2: Tensor, seed: int = 0, num_classes: int = 3) -> Predictions:
    """Return random predictions on two levels, near their priors."""
    generator = torch.Generator().manual_seed(seed)
    priors = Priors.on_grids([(8, 12), (4, 6)], (8, 16), sizes_LA2)
    shape = (num_images, priors.num_priors)
    half_BP2 = priors.sizes_P2 * (torch.rand((*shape, 2), generator=generator) + 0.5) / 2
    center_BP2 = priors.centers_P2 + priors.strides_P[:, None] * (torch.rand((*shape, 2), generator=generator) - 0.5)
    return Predictions(
        torch.cat((center_BP2 - half_BP2, center_BP2 + half_BP2), dim=-1),
        torch.randn((*shape, num_classes), generator=generator),
        torch.randn(shape, generator=generator),
        priors,
    )


def targets(per_image: Sequence[Sequence[tuple[float, ...]]]) -> Targets:
    """Return targets given as label and corners."""
    rows = [torch.tensor(image).reshape(-1, 5) for image in per_image]
    return Targets.from_lists([row[:, 1:] for row in rows], [row[:, 0] for row in rows], (HEIGHT, WIDTH))


def rows(assignment: Assignment) -> list[tuple[int, int, int]]:
    """Return the matches, sorted."""
    columns = (assignment.image_M, assignment.prior_M, assignment.target_M)
    return sorted(zip(*(column.tolist() for column in columns), strict=True))
