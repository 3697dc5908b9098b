"""A study's directory: one study in one directory, and one process at a time.

study.json                   the study as resolved, which the next command must have, too
cells/NAME/seed-0/           an ordinary run, with its matches and measured-last.json once it is finished
cells/NAME/log-seed-0.txt    what its process said
cells/NAME/error-seed-0.txt  why it failed, until it succeeds
cells/NAME/latency.json      milliseconds before and after the reparam passes
report.json, report.html, report.md, report.csv, differences.png, curves.png
.lock                        held by the command, and by the processes that it started
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from detloom.durable import remove_leftovers, write_text
from detloom.engine.run import differences
from detloom.errors import ArtifactError
from detloom.plugin_source import read_plugin_file
from detloom.study.cells import Cell
from detloom.study.locking import LOCK, make_locked
from detloom.study.matches import Weights
from detloom.study.settings import Study
from detloom.study.work import measured_file

__all__ = ["StudyDirectory"]

STUDY = "study.json"
LATENCY = "latency.json"


class StudyDirectory:
    """Where a study's runs and reports lie; while it is entered, no other command may write there."""

    def __init__(self, path: Path, weights: Weights = "last") -> None:
        self.path = path
        self._weights = weights
        self._lock: IO[str] | None = None

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

    @property
    def lock_number(self) -> int:
        """Return the lock's file descriptor, for processes that are to hold it, too."""
        return -1 if self._lock is None else self._lock.fileno()

    def check(self, study: Study, cells: Sequence[Cell]) -> None:
        """Refuse a directory that holds another study, or none; changes nothing.

        Raises:
            ArtifactError: It says in what they differ.
        """
        file = self.path / STUDY
        if not file.exists():
            strays = (
                sorted(each.name for each in self.path.iterdir() if each.name != LOCK) if self.path.is_dir() else []
            )
            if strays:
                raise ArtifactError(
                    f"{self.path}: this is no directory of a study: it holds {', '.join(strays[:5])}\n"
                    "  Choose another with --out."
                )
            return
        try:
            old = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{file}: the study that was begun here cannot be read: {error}") from error
        different = differences(old, _content(study, cells))
        if different:
            raise ArtifactError(
                f"{self.path}: another study was begun here; it differs in {', '.join(different[:8])}\n"
                "  A changed study needs a directory of its own (--out), or undo the change to go on with this one."
            )

    def open(self, study: Study, cells: Sequence[Cell]) -> None:
        """Make the directory and take its lock.

        Raises:
            ArtifactError: It holds another study, is in use, or cannot be written.
        """
        self._lock = make_locked(self.path, "detloom ablate")
        try:
            self.check(study, cells)
            remove_leftovers(self.path)
            if not (self.path / STUDY).exists():
                write_text(self.path / STUDY, json.dumps(_content(study, cells), indent=1) + "\n")
        except ArtifactError:
            self.close()
            raise

    def close(self) -> None:
        """Let other commands write here."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def _content(study: Study, cells: Sequence[Cell]) -> dict[str, Any]:
    """Return the study with its recipes, resolved, and what its plugins' files hold, so that no change goes unseen."""
    recipes = {cell.name: cell.recipe for cell in cells if cell.recipe is not None}
    content = {**study.as_data(), "recipes": {name: recipe.tables for name, recipe in recipes.items()}}
    paths = sorted({path for recipe in recipes.values() for path in recipe.plugins})
    if files := [read_plugin_file(Path(path)) for path in paths]:
        content["plugins"] = {file.name: f"sha256 {file.digest}" for file in files}
    plain: dict[str, Any] = json.loads(json.dumps(content))
    return plain
