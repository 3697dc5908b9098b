"""A directory that holds one study or search, which one command at a time may write."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from detloom.durable import UNFINISHED, remove_leftovers, write_text
from detloom.engine.run import ELSEWHERE, differences
from detloom.errors import ArtifactError, reason

__all__ = ["LockedDirectory"]

LOCK = ".lock"
# What was killed a moment ago may still be ending.
PATIENCE = 10.0


class LockedDirectory:
    """Where runs and reports lie; while it is open, no other command may write there.

    Args:
        path: Of the directory, which need not exist.
        noun: What it holds, "study" or "search": a file of that name says which one was begun.
        command: Who writes there.
    """

    def __init__(self, path: Path, *, noun: str, command: str) -> None:
        self.path = path
        self._noun = noun
        self._command = command
        self._record = path / f"{noun}.json"
        self._lock: IO[str] | None = None

    @property
    def lock_number(self) -> int:
        """Return the lock's file descriptor, for processes that are to hold it, too."""
        return -1 if self._lock is None else self._lock.fileno()

    def check(self, content: Mapping[str, Any]) -> None:
        """Refuse a directory that holds another study or search, or something else; changes nothing.

        Raises:
            ArtifactError: It says in what they differ.
        """
        if not self._record.exists():
            found = [each.name for each in self.path.iterdir()] if self.path.is_dir() else []
            # A killed process may have left one half written.
            strays = sorted(name for name in found if name != LOCK and not name.endswith(UNFINISHED))
            if strays:
                raise ArtifactError(
                    f"{self.path}: this is no directory of a {self._noun}: it holds {', '.join(strays[:5])}\n"
                    "  Choose another with --out."
                )
            return
        try:
            old = json.loads(self._record.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ArtifactError(
                f"{self._record}: the {self._noun} that was begun here cannot be read: {error}\n"
                "  Choose another directory with --out."
            ) from error
        different = differences(old, json.loads(json.dumps(content)))
        if different:
            raise ArtifactError(
                f"{self.path}: another {self._noun} was begun here; it differs in {', '.join(different[:8])}\n"
                f"  A changed {self._noun} needs a directory of its own (--out), or undo the change to go on with this "
                "one."
            )

    def open(self, content: Mapping[str, Any]) -> None:
        """Make the directory and take its lock.

        Raises:
            ArtifactError: It holds something else, is in use, or cannot be written.
        """
        self._lock = _locked(self.path, self._command)
        try:
            self.check(content)
            remove_leftovers(self.path)
            if not self._record.exists():
                write_text(self._record, json.dumps(content, indent=1) + "\n")
        except ArtifactError:
            self.close()
            raise

    def close(self) -> None:
        """Let other commands write here."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def _locked(directory: Path, command: str) -> IO[str] | None:
    """Make a directory and return its lock, held until it is closed; None on systems that have none.

    Args:
        directory: What it is made for.
        command: Who holds it, for the message.

    Raises:
        ArtifactError: The directory cannot be made or written, or another process holds the lock.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(f"{directory}: the directory cannot be made: {reason(error)}\n  {ELSEWHERE}") from error
    try:
        import fcntl
    except ImportError:  # Windows has no such locks; each run's own lock still keeps two processes apart.
        return None
    try:
        lock = (directory / LOCK).open("w", encoding="utf-8")
    except OSError as error:
        raise ArtifactError(f"{directory}: the directory cannot be written: {reason(error)}\n  {ELSEWHERE}") from error
    limit = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() < limit:
                time.sleep(0.1)
                continue
            lock.close()
            raise ArtifactError(
                f"{directory}: another `{command}` is at work in this directory; wait for it, or stop it"
            ) from error
        except OSError as error:
            lock.close()
            raise ArtifactError(f"{directory}: no file can be locked there: {reason(error)}\n  {ELSEWHERE}") from error
        return lock
