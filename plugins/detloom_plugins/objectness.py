"""Whether a head and a criterion agree on an objectness: what is not learned must not be part of a score."""

from detloom.structures import HeadTraits

__all__ = ["objection_to_objectness", "objection_without_objectness"]


def objection_to_objectness(head: HeadTraits) -> str | None:
    """Return why a criterion that learns no objectness cannot serve a head that has one, or None where it can."""
    if not head.objectness:
        return None
    return (
        "it learns no objectness, but scores of this head are products with one, which would stay as it is drawn; "
        "set objectness = false in [head], or take a criterion that learns it, as 'yolov7' or 'yolox'"
    )


def objection_without_objectness(head: HeadTraits) -> str | None:
    """Return why a criterion that learns an objectness cannot serve a head that has none, or None where it can."""
    if head.objectness:
        return None
    return (
        "it learns an objectness, which this head does not predict; set objectness = true in [head], where it has that "
        "setting, or take a criterion without, as 'varifocal', 'quality-focal' or 'focal'"
    )
