"""Tensors under detloom's own names: what ``state_dict()`` of a detector gave, saved without its recipe."""

from collections.abc import Callable
from typing import Any

from detloom.detector import Detector
from detloom.foreign import ForeignCheckpoint
from detloom.hookspecs import hookimpl
from detloom.interfaces import Importer
from detloom.recipe import Recipe

__all__ = ["OwnNamesImporter"]


class OwnNamesImporter(Importer):
    """Take a saved ``state_dict()`` of a detector; the recipe must be named where several have such tensors."""

    def recognises(self, checkpoint: ForeignCheckpoint) -> bool:
        """Return whether every tensor lies in a backbone, a neck or a head, and some in the outer two."""
        parts = {name.partition(".")[0] for name in checkpoint.tensors}
        return {"backbone", "head"} <= parts <= {"backbone", "neck", "head"}

    def class_names(self, checkpoint: ForeignCheckpoint) -> tuple[str, ...] | None:  # noqa: ARG002 - such a file has none
        """Return nothing: tensors alone do not say."""
        return None

    def overrides(self, checkpoint: ForeignCheckpoint, recipe: Recipe) -> dict[str, Any]:  # noqa: ARG002 - the same
        """Return nothing: tensors alone do not say."""
        return {}

    def mapping(self, checkpoint: ForeignCheckpoint, detector: Detector) -> dict[str, str | None]:  # noqa: ARG002 - names stay
        """Return each name for itself."""
        return {name: name for name in checkpoint.tensors}


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the importer."""
    register("own-names", OwnNamesImporter)
