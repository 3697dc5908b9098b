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
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from detloom.durable import UNFINISHED, remove_leftovers, write_text
from detloom.engine.run import differences
from detloom.errors import ArtifactError
from detloom.search.space import State, Trial
from detloom.study.locking import LOCK, make_locked
from detloom.study.work import measured_file

__all__ = ["SearchDirectory"]

SEARCH, PREPARED, TRIALS = "search.json", "prepared.json", "trials.json"


class SearchDirectory:
    """Where trials and reports lie; while it is open, no other command may write there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: IO[str] | None = None

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
        file = measured_file(self.run(number), "last")
        return float(_read(file)["AP"]) if file.exists() else None

    @property
    def lock_number(self) -> int:
        """Return the lock's file descriptor, for processes that are to hold it, too."""
        return -1 if self._lock is None else self._lock.fileno()

    def check(self, content: Mapping[str, Any]) -> None:
        """Refuse a directory that holds another search, or something else; changes nothing.

        Raises:
            ArtifactError: It says in what they differ.
        """
        file = self.path / SEARCH
        if not file.exists():
            found = [each.name for each in self.path.iterdir()] if self.path.is_dir() else []
            # A killed process may have left one half written.
            strays = [name for name in found if name != LOCK and not name.endswith(UNFINISHED)]
            if strays:
                raise ArtifactError(
                    f"{self.path}: this is no directory of a search: it holds {', '.join(sorted(strays)[:5])}\n"
                    "  Choose another with --out."
                )
            return
        different = differences(_read(file), json.loads(json.dumps(content)))
        if different:
            raise ArtifactError(
                f"{self.path}: another search was begun here; it differs in {', '.join(different[:8])}\n"
                "  A changed search needs a directory of its own (--out), or undo the change to go on with this one."
            )

    def open(self, content: Mapping[str, Any]) -> None:
        """Make the directory and take its lock.

        Raises:
            ArtifactError: It holds another search, is in use, or cannot be written.
        """
        self._lock = make_locked(self.path, "detloom search")
        try:
            self.check(content)
            remove_leftovers(self.path)
            if not (self.path / SEARCH).exists():
                write_text(self.path / SEARCH, json.dumps(content, indent=1) + "\n")
        except ArtifactError:
            self.close()
            raise

    def close(self) -> None:
        """Let other commands write here."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def prepared(self) -> dict[str, Any] | None:
        """Return what the strategy learned, or None where it has not yet."""
        file = self.path / PREPARED
        return _read(file) if file.exists() else None

    def keep_prepared(self, content: Mapping[str, Any]) -> None:
        """Keep what the strategy learned."""
        write_text(self.path / PREPARED, json.dumps(content) + "\n")

    def trials(self) -> list[Trial]:
        """Return what was proposed so far."""
        file = self.path / TRIALS
        try:
            return [_trial(each) for each in _read(file)] if file.exists() else []
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"{file}: this is no list of trials: {error}; begin anew with --out") from error

    def keep_trials(self, trials: Sequence[Trial]) -> None:
        """Keep what was proposed so far."""
        write_text(self.path / TRIALS, json.dumps([asdict(each) for each in trials], indent=1) + "\n")


def _trial(content: Mapping[str, Any]) -> Trial:
    return Trial(
        number=int(content["number"]),
        point=tuple(int(place) for place in content["point"]),
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
