"""Auxiliary heads that learn what the lead predictions find under weaker conditions, and learn it less surely.

Shape letters: M matches, N other matches, P priors.

Reference: YOLOv7 (2022), section 4.3 and figure 5 (e); section 5.4 and table 7 for the bound.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor

from detloom.errors import RecipeError
from detloom.hookspecs import hookimpl
from detloom.interfaces import Assigner
from detloom.ops.ranking import LAST_KEY
from detloom.structures import Assignment, HeadTraits, Predictions, Targets

__all__ = ["Bound", "CoarseToFineAssigner", "is_among", "register_components"]

Bound = Literal["none", "constant", "distance"]

NO_COARSE = (
    "its inner assigner has no relaxed form: say with `coarse = { use = ... }` what auxiliary heads are given, "
    "or take 'lead-guided'"
)


class CoarseToFineAssigner(Assigner):
    """The lead predictions decide for both heads, for the auxiliary one under weaker conditions.

    The lead head thus learns fine positives; the auxiliary head, which learns less well and must not miss objects,
    learns coarse ones. Extra positives, which are coarse alone, may be bounded, so that they are not learned as
    surely as those of the lead head; the objectness learns no more than the bound. For that the inner method is
    asked once more in each batch. Where auxiliary outputs stand on some levels alone, the lead predictions of
    these levels decide.

    Args:
        inner: Method of the lead head.
        coarse: Method of the auxiliary head; the inner one's relaxed form when not given.
        bound: What bounds the quality of extra positives. none: the decoder alone, as in the published code: of a
            head such as ``anchor``, whose boxes lie at most a cell from their prior, extra positives cannot
            overlap their targets fully; other heads set no such bound. constant: a factor. distance: the factor to
            the power of the distance from the prior's centre to the target's, in cells.
        bound_factor: The factor; of ``distance`` it holds at one cell.
    """

    def __init__(
        self, *, inner: Assigner, coarse: Assigner | None = None, bound: Bound = "none", bound_factor: float = 0.5
    ) -> None:
        if bound not in get_args(Bound):
            raise RecipeError(f"bound must be one of {', '.join(get_args(Bound))}, got {bound!r}; published is none")
        if not 0 <= bound_factor <= 1:
            raise RecipeError(f"bound_factor must lie in [0, 1], got {bound_factor}; no value is published")
        self.inner = inner
        self.coarse = coarse
        self.bound = bound
        self.bound_factor = bound_factor
        self.one_to_one = inner.one_to_one

    def objection(self, head: HeadTraits) -> str | None:
        """Return what either method has against the head, or that there is no coarse one."""
        coarse = self._coarse()
        if coarse is None:
            return NO_COARSE
        return self.inner.objection(head) or coarse.objection(head)

    def assign(self, predictions: Predictions, targets: Targets) -> Assignment:
        """Return the matches of the inner method."""
        return self.inner.assign(predictions, targets)

    @torch.no_grad()
    def assign_auxiliary(self, lead: Predictions, auxiliary: Predictions, targets: Targets) -> Assignment:
        """Return the coarse matches that the lead predictions find on the auxiliary levels."""
        method = self._coarse()
        if method is None:
            raise RecipeError(f"assigner 'coarse-to-fine': {NO_COARSE}")
        guide = lead.on_levels_of(auxiliary.priors)
        coarse = method.assign(guide, targets)
        if self.bound == "none":
            return coarse
        is_extra_M = ~is_among(coarse, self.inner.assign(guide, targets), guide.priors.num_priors)
        prior_M, boxes_M4 = coarse.prior_M, targets.boxes_T4[coarse.target_M]
        offset_M2 = guide.priors.centers_P2[prior_M] - (boxes_M4[:, :2] + boxes_M4[:, 2:]) / 2
        limit_M = self.limit(offset_M2.norm(dim=1) / guide.priors.strides_P[prior_M])
        return replace(coarse, quality_M=torch.where(is_extra_M, coarse.quality_M * limit_M, coarse.quality_M))

    def limit(self, cells_M: Tensor) -> Tensor:
        """Return the factors on the qualities of extra positives this many cells from their target's centre."""
        match self.bound:
            case "none":
                return torch.ones_like(cells_M)
            case "constant":
                return torch.full_like(cells_M, self.bound_factor)
            case "distance":
                return self.bound_factor**cells_M

    def relaxed(self) -> Assigner | None:
        """Return the coarse method."""
        return self._coarse()

    def _coarse(self) -> Assigner | None:
        return self.inner.relaxed() if self.coarse is None else self.coarse


def is_among(matches: Assignment, others: Assignment, num_priors: int) -> Tensor:
    """Return ``[M]``: whether a match of a prior and a target is also one of the others; asks the device nothing."""
    # A target lies in one image, so that it and the prior say all.
    key_M = matches.target_M * num_priors + matches.prior_M
    key_N = (others.target_M * num_priors + others.prior_M).sort().values
    # One more, so that every key has a place.
    key_N = torch.cat((key_N, key_N.new_full((1,), LAST_KEY)))
    return key_N[torch.searchsorted(key_N, key_M)] == key_M


@hookimpl
def register_components(register: Callable[[str, type[Assigner]], None]) -> None:
    """Offer the wrapper."""
    register("coarse-to-fine", CoarseToFineAssigner)
