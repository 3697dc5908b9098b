"""Auxiliary heads that learn what the lead predictions find.

Reference: YOLOv7 (2022), section 4.3 and figure 5 (d).
"""

from collections.abc import Callable

from detloom.hookspecs import hookimpl
from detloom.interfaces import Assigner
from detloom.structures import Assignment, HeadTraits, Predictions, Targets

__all__ = ["LeadGuidedAssigner", "register_components"]


class LeadGuidedAssigner(Assigner):
    """The lead predictions decide for both heads, as they are the better ones.

    Where auxiliary outputs stand on some levels alone, the lead predictions of these levels decide, so that an
    object is learned there too that the lead head finds on another level.

    Args:
        inner: Method of both heads.
    """

    def __init__(self, *, inner: Assigner) -> None:
        self.inner = inner
        self.one_to_one = inner.one_to_one

    def objection(self, head: HeadTraits) -> str | None:
        """Return what the inner method has against the head."""
        return self.inner.objection(head)

    def assign(self, predictions: Predictions, targets: Targets) -> Assignment:
        """Return the matches of the inner method."""
        return self.inner.assign(predictions, targets)

    def assign_auxiliary(self, lead: Predictions, auxiliary: Predictions, targets: Targets) -> Assignment:
        """Return the matches that the lead predictions find on the auxiliary levels."""
        return self.inner.assign(lead.on_levels_of(auxiliary.priors), targets)

    def relaxed(self) -> Assigner | None:
        """Return the inner method's relaxed form."""
        return self.inner.relaxed()


@hookimpl
def register_components(register: Callable[[str, type[Assigner]], None]) -> None:
    """Offer the wrapper."""
    register("lead-guided", LeadGuidedAssigner)
