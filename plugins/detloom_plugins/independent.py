"""Auxiliary heads that are assigned by their own predictions, by the lead's method or by another.

References: YOLOv7 (2022), section 4.3 and figure 5 (c); YOLOv10 (2024), section 3.1, for dual assignment.
"""

from collections.abc import Callable

from detloom.hookspecs import hookimpl
from detloom.interfaces import Assigner
from detloom.structures import Assignment, HeadTraits, Predictions, Targets

__all__ = ["IndependentAssigner", "register_components"]


class IndependentAssigner(Assigner):
    """Lead and auxiliary predictions find their positives each by themselves.

    With a one-to-one ``inner`` and a one-to-many ``auxiliary`` this is the dual assignment of YOLOv10: the
    auxiliary head is taught richly, the lead head so that nothing need be suppressed. Its matching is consistent
    where both are task-aligned, the inner one with a single candidate, and with exponents in the same proportion.

    Args:
        inner: Method of the lead head.
        auxiliary: Method of the auxiliary head; that of the lead head when not given.
    """

    def __init__(self, *, inner: Assigner, auxiliary: Assigner | None = None) -> None:
        self.inner = inner
        self.auxiliary = auxiliary
        self.one_to_one = inner.one_to_one

    def objection(self, head: HeadTraits) -> str | None:
        """Return what either method has against the head."""
        return self.inner.objection(head) or (self.auxiliary or self.inner).objection(head)

    def assign(self, predictions: Predictions, targets: Targets) -> Assignment:
        """Return the matches of the inner method."""
        return self.inner.assign(predictions, targets)

    def assign_auxiliary(self, lead: Predictions, auxiliary: Predictions, targets: Targets) -> Assignment:  # noqa: ARG002 - the lead has no say
        """Return the matches that the auxiliary predictions find."""
        return (self.auxiliary or self.inner).assign(auxiliary, targets)

    def relaxed(self) -> Assigner | None:
        """Return the inner method's relaxed form."""
        return self.inner.relaxed()


@hookimpl
def register_components(register: Callable[[str, type[Assigner]], None]) -> None:
    """Offer the wrapper."""
    register("independent", IndependentAssigner)
