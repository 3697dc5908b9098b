"""The lock of a directory that one command at a time may write."""

import time
from pathlib import Path
from typing import IO

from detloom.engine.run import ELSEWHERE
from detloom.errors import ArtifactError, reason

__all__ = ["LOCK", "make_locked"]

LOCK = ".lock"
# What was killed a moment ago may still be ending.
PATIENCE = 10.0


def make_locked(directory: Path, command: str) -> IO[str] | None:
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
