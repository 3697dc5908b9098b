"""A folder of files that is whole or not there: made beside its place, and moved there in one step.

A process that is killed leaves a folder behind whose name begins with a dot; the next export to the same place takes
it away. Whether the one that made it is still at work is told by a lock, which the system lets go of with the process.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from detloom.errors import ArtifactError, reason

__all__ = ["REPORT", "check_destination", "staged"]

REPORT = "report.json"
"""By this file a folder is known as one of an export."""

LOCK = ".lock"
FILES = "files"
OLD = "old"


def check_destination(folder: Path, *, force: bool) -> None:
    """Refuse a place that holds something else, or an export that is not to be replaced.

    A report of an export that was refused has no model beside it, and is always replaced.

    Raises:
        ArtifactError: The place is taken.
    """
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if not folder.exists():
        return
    report = folder / REPORT
    if not report.is_file():
        raise ArtifactError(f"{folder}: this is no export of detloom, and is left as it is; give --out another name")
    if not force and not _is_refused(report):
        raise ArtifactError(
            f"{folder}: there is an export already; --force takes its place, or give --out another name"
        )


@contextmanager
def staged(folder: Path, *, force: bool) -> Iterator[Path]:
    """Yield an empty folder that takes the place of ``folder`` when all went well, and is gone else.

    Raises:
        ArtifactError: The place is taken or cannot be written.
    """
    check_destination(folder, force=force)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
        beside = Path(tempfile.mkdtemp(prefix=_prefix(folder), dir=folder.parent))
    except OSError as error:
        raise ArtifactError(f"{folder}: cannot be written: {reason(error)}. Write somewhere else: --out") from error
    lock = _locked(beside)
    try:
        made = beside / FILES
        made.mkdir()
        yield made
        check_destination(folder, force=force)
        try:
            _move(made, folder, beside / OLD)
        except OSError as error:
            raise ArtifactError(f"{folder}: cannot be written: {reason(error)}. Write somewhere else: --out") from error
    finally:
        if lock is not None:
            lock.close()
        shutil.rmtree(beside, ignore_errors=True)


def _move(made: Path, folder: Path, old: Path) -> None:
    for path in (*sorted(made.rglob("*")), made):
        _flush(path)
    if folder.exists():
        folder.rename(old)
    try:
        made.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    _flush(folder.parent)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _prefix(folder: Path) -> str:
    return f".{folder.name}.export-"


def _remove_leftovers(folder: Path) -> None:
    prefix = _prefix(folder)
    for left in [path for path in folder.parent.iterdir() if path.name.startswith(prefix)]:
        # One without a lock is being made at this moment.
        lock = _locked(left) if (left / LOCK).exists() else None
        if lock is None:
            continue
        lock.close()
        # A process that was killed between two moves: what was there before is there again.
        if (left / OLD).exists() and not folder.exists():
            (left / OLD).rename(folder)
        shutil.rmtree(left, ignore_errors=True)


def _locked(beside: Path) -> IO[str] | None:
    """Return the lock of a folder that is being filled, or None where another process has it."""
    try:
        import fcntl
    except ImportError:  # Windows has no such locks; what a killed process left stays there.
        return None
    try:
        lock = (beside / LOCK).open("w", encoding="utf-8")
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        return None
    return lock


def _is_refused(report: Path) -> bool:
    with suppress(OSError, ValueError):
        content = json.loads(report.read_text(encoding="utf-8"))
        return isinstance(content, dict) and content.get("status") == "refused"
    return False
