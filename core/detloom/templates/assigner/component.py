"""Centre sampling: a target is learned by the priors around its centre, on every level.

Shape letters: B images, P priors, T targets, M matches.

Reference: Tian et al., FCOS (2020), arXiv:2006.09214, section 3.1.
"""

from collections.abc import Callable
from typing import Any

import torch

from detloom import hookimpl
from detloom.errors import RecipeError
from detloom.interfaces import Assigner
from detloom.structures import Assignment, Predictions, Targets

__all__ = ["NewComponent", "register_components"]

# The version of the plugin API that this was written for.
PLUGIN_API = 1


class NewComponent(Assigner):
    """Positives lie near a target's centre; the predictions play no part.

    A prior near several targets of its picture learns the nearest, and all that are equally near.

    Args:
        radius: How far from the centre a prior may be, in strides of its level, along x and along y.
    """

    def __init__(self, *, radius: float = 1.5) -> None:
        if radius < 0.5:
            raise RecipeError(f"radius must be at least 0.5, or some targets have no prior at all; got {radius}")
        self.radius = radius

    @torch.no_grad()
    def assign(self, predictions: Predictions, targets: Targets) -> Assignment:
        """Return the matches, target after target; their quality is 1."""
        priors = predictions.priors
        center_T2 = (targets.boxes_T4[:, :2] + targets.boxes_T4[:, 2:]) / 2
        offset_TP2 = (center_T2[:, None] - priors.centers_P2).abs()
        distance_TP = offset_TP2.amax(dim=-1) / priors.strides_P
        cost_TP = distance_TP.where(distance_TP <= self.radius, torch.inf)

        least_BP = cost_TP.new_full((targets.num_images, priors.num_priors), torch.inf)
        image_TP = targets.image_T[:, None].expand_as(cost_TP)
        least_BP = least_BP.scatter_reduce(0, image_TP, cost_TP, "amin")
        is_match_TP = cost_TP.isfinite() & (cost_TP == least_BP[targets.image_T])
        target_M, prior_M = is_match_TP.nonzero(as_tuple=True)
        return Assignment(
            image_M=targets.image_T[target_M],
            prior_M=prior_M,
            target_M=target_M,
            quality_M=torch.ones_like(target_M, dtype=torch.float32),
        )


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the assigner under the name that recipes use."""
    register("new-component", NewComponent)
