"""Centre sampling: a target is learned by the priors around its centre, on the level that suits its size.

Shape letters: B images, P priors, T targets, L levels, M matches.

References: FCOS (2019), sections 3.1 and 3.2, and its journal version (2020), section 3.1. Where
they give each level a range of sizes in pixels, here the level is chosen whose stride, times
``cells_per_side``, is nearest to the target's size; so it serves any number of levels.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from detloom import hookimpl
from detloom.errors import RecipeError
from detloom.interfaces import Assigner
from detloom.structures import Assignment, Predictions, Priors, Targets

__all__ = ["CentreAssigner", "register_components"]

# The version of the plugin API that this was written for.
PLUGIN_API = 1


class CentreAssigner(Assigner):
    """Positives lie near a target's centre; the predictions play no part.

    A prior near two targets of its picture learns the nearer one, and both where they are equally near.

    Args:
        radius: How far from the centre a prior may be, in strides of its level, along x and along y.
        cells_per_side: Side of a target, in cells, that its level should have.
    """

    def __init__(self, *, radius: float = 1.5, cells_per_side: float = 8.0) -> None:
        if radius < 0.5:
            raise RecipeError(f"radius must be at least 0.5, or some targets have no prior at all; got {radius}")
        if cells_per_side <= 0:
            raise RecipeError(f"cells_per_side must be above 0, got {cells_per_side}")
        self.radius = radius
        self.cells_per_side = cells_per_side

    @torch.no_grad()
    def assign(self, predictions: Predictions, targets: Targets) -> Assignment:
        """Return the matches, target after target; their quality is 1."""
        priors = predictions.priors
        center_T2 = (targets.boxes_T4[:, :2] + targets.boxes_T4[:, 2:]) / 2
        offset_TP2 = (center_T2[:, None] - priors.centers_P2).abs()
        distance_TP = offset_TP2.amax(dim=-1) / priors.strides_P
        is_near_TP = (distance_TP <= self.radius) & (priors.level_P == self._level_of(targets.boxes_T4, priors))

        cost_TP = distance_TP.where(is_near_TP, torch.inf)
        least_BP = cost_TP.new_full((targets.num_images, priors.num_priors), torch.inf)
        image_TP = targets.image_T[:, None].expand_as(cost_TP)
        least_BP = least_BP.scatter_reduce(0, image_TP, cost_TP, "amin")
        target_M, prior_M = (is_near_TP & (cost_TP == least_BP[targets.image_T])).nonzero(as_tuple=True)
        return Assignment(
            image_M=targets.image_T[target_M],
            prior_M=prior_M,
            target_M=target_M,
            quality_M=torch.ones_like(target_M, dtype=torch.float32),
        )

    def _level_of(self, boxes_T4: Tensor, priors: Priors) -> Tensor:
        side_T = (boxes_T4[:, 2:] - boxes_T4[:, :2]).prod(dim=-1).sqrt()
        best_L = boxes_T4.new_tensor([grid.stride * self.cells_per_side for grid in priors.grids])
        return (side_T[:, None].log() - best_L.log()).abs().argmin(dim=1, keepdim=True)


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the assigner; recipes call it ``centre``."""
    register("centre", CentreAssigner)
