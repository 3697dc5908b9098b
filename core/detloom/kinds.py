"""The kinds of component, each a slot that a recipe fills."""

from enum import StrEnum

__all__ = ["Kind"]


class Kind(StrEnum):
    """A slot of a detector, or of the work around it."""

    BACKBONE = "backbone"
    NECK = "neck"
    HEAD = "head"
    ASSIGNER = "assigner"
    CRITERION = "criterion"
    REPARAM = "reparam"
    EMA = "ema"
    ANCHORS = "anchors"
    DATASET = "dataset"
    EVALUATOR = "evaluator"
    OBSERVER = "observer"
    IMPORTER = "importer"
    EXPORTER = "exporter"
    SCALING = "scaling"
    SEARCH = "search"
