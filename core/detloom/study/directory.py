"""A study's directory: one study in one directory, and one process at a time.

study.json                   the study as resolved, which the next command must have, too
cells/NAME/seed-0/           an ordinary run, with its matches and measured-last.json once it is finished
cells/NAME/log-seed-0.txt    what its process said
cells/NAME/error-seed-0.txt  why it failed, until it succeeds
cells/NAME/latency.json      milliseconds before and after the reparam passes
report.json, report.html, report.md, report.csv, differences.png, curves.png
.lock                        held by the command, and by the processes that it started
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detloom.durable import write_text
from detloom.plugin_source import digests_of
from detloom.study.cells import Cell
from detloom.study.locking import LockedDirectory
from detloom.study.matches import Weights
from detloom.study.settings import Study
from detloom.study.work import measured_file

__all__ = ["StudyDirectory", "content_of"]

LATENCY = "latency.json"


class StudyDirectory(LockedDirectory):
    """Where a study's runs and reports lie."""

    def __init__(self, path: Path, weights: Weights = "last") -> None:
        super().__init__(path, noun="study", command="detloom ablate")
        self._weights = weights

    def run(self, cell: str, seed: int) -> Path:
        """Return the directory of a run."""
        return self.path / "cells" / cell / f"seed-{seed}"

    def log(self, cell: str, name: str) -> Path:
        """Return where the output of an item goes."""
        return self.path / "cells" / cell / f"log-{name}.txt"

    def error_file(self, cell: str, seed: int) -> Path:
        """Return where it is kept why a run failed."""
        return self.path / "cells" / cell / f"error-seed-{seed}.txt"

    def latency(self, cell: str) -> Path:
        """Return where the times of a cell's detector are."""
        return self.path / "cells" / cell / LATENCY

    def is_finished(self, cell: str, seed: int) -> bool:
        """Return whether a run is trained and measured."""
        return measured_file(self.run(cell, seed), self._weights).exists()

    def error(self, cell: str, seed: int) -> str:
        """Return why a run failed when it was last tried; empty where it did not."""
        try:
            return self.error_file(cell, seed).read_text(encoding="utf-8")
        except FileNotFoundError:
            return ""

    def note(self, cell: str, seed: int, error: str) -> None:
        """Keep why a run failed, or that it did not."""
        if error:
            write_text(self.error_file(cell, seed), error)
        else:
            self.error_file(cell, seed).unlink(missing_ok=True)


def content_of(study: Study, cells: Sequence[Cell]) -> dict[str, Any]:
    """Return the study with its recipes, resolved, and what its plugins' files hold, so that no change goes unseen."""
    recipes = {cell.name: cell.recipe for cell in cells if cell.recipe is not None}
    content = {**study.as_data(), "recipes": {name: recipe.tables for name, recipe in recipes.items()}}
    return {**content, "plugins": digests_of(path for recipe in recipes.values() for path in recipe.plugins)}
