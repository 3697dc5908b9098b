"""A search's directory: one search in one directory, and one process at a time.

search.json           the search as resolved, which the next command must have, too
prepared.json         what the strategy learned before the first trial, and strategy/ where it did
trials.json           all points that were proposed, in order, with what became of them
trials/0007/run/      an ordinary run, once the point is trained
trials/0007/log.txt   what its process said
best.toml, front/     the winner, and all of the front, as recipes
report.json, report.md, report.csv, front.png
.lock                 held by the command, and by the processes that it started
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from detloom.durable import write_text
from detloom.errors import ArtifactError
from detloom.search.space import SearchSpace, State, Trial
from detloom.study.locking import LockedDirectory
from detloom.study.work import read_measured
from detloom.wording import shown

__all__ = ["SearchDirectory"]

PREPARED, TRIALS = "prepared.json", "trials.json"


class SearchDirectory(LockedDirectory):
    """Where trials and reports lie."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, noun="search", command="detloom search")

    @property
    def strategy(self) -> Path:
        """Return where the strategy may write."""
        return self.path / "strategy"

    def run(self, number: int) -> Path:
        """Return the directory of a trial's run."""
        return self.path / "trials" / f"{number:04}" / "run"

    def log(self, number: int) -> Path:
        """Return where the output of a trial goes."""
        return self.path / "trials" / f"{number:04}" / "log.txt"

    def ap(self, number: int) -> float | None:
        """Return the AP of a trial's run, or None where it is not measured yet."""
        measured = read_measured(self.run(number), "last")
        return None if measured is None else float(measured["AP"])

    def prepared(self) -> dict[str, Any] | None:
        """Return what the strategy learned, or None where it has not yet."""
        file = self.path / PREPARED
        if not file.exists():
            return None
        content = _read(file)
        if not isinstance(content, dict):
            raise ArtifactError(f"{file}: this is not what a strategy learned: {shown(content)}; begin anew with --out")
        return content

    def keep_prepared(self, content: Mapping[str, Any]) -> None:
        """Keep what the strategy learned."""
        write_text(self.path / PREPARED, json.dumps(content) + "\n")

    def forget(self) -> None:
        """Take back the record of a search that cannot be begun, and what its strategy wrote."""
        for file in (self._record, self.path / PREPARED):
            file.unlink(missing_ok=True)
        shutil.rmtree(self.strategy, ignore_errors=True)

    def trials(self, space: SearchSpace) -> list[Trial]:
        """Return what was proposed so far.

        Args:
            space: Which the points must be of.

        Raises:
            ArtifactError: The file has something else.
        """
        file = self.path / TRIALS
        try:
            return [_trial(each, number, space) for number, each in enumerate(_read(file))] if file.exists() else []
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"{file}: this is no list of trials: {error}; begin anew with --out") from error

    def keep_trials(self, trials: Sequence[Trial]) -> None:
        """Keep what was proposed so far."""
        write_text(self.path / TRIALS, json.dumps([asdict(each) for each in trials], indent=1) + "\n")


def _trial(content: Mapping[str, Any], number: int, space: SearchSpace) -> Trial:
    point = tuple(content["point"])
    if complaint := space.complaint(point):
        raise ValueError(complaint)
    if content["number"] != number:
        raise ValueError(f"trial {content['number']} is in the place of trial {number}")
    return Trial(
        number=number,
        point=point,
        state=State(content["state"]),
        values=tuple(float(value) for value in content["values"]),
        figures=dict(content["figures"]),
        reason=str(content["reason"]),
    )


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{file}: cannot be read: {error}; begin anew with --out") from error
