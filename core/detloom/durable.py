"""Files that are whole or not there: written beside their place, flushed to the disk, renamed."""

import errno
import math
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from detloom.errors import ArtifactError, reason

__all__ = [
    "MOST_TENSORS",
    "UNFINISHED",
    "not_finite",
    "read_tensors",
    "remove_leftovers",
    "write_tensors",
    "write_text",
    "write_whole",
]

MOST_TENSORS = 100_000
"""How many tensors are read of one file: an empty one takes no room there, and some here."""
LONGEST_HEADER = 16 * 2**20
MOST_AXES = 8
LARGEST_SHAPE = 2**48

FORBIDDEN = "Get the right to write in {folder}, or write somewhere else."
ADVICE = {
    errno.ENOSPC: "Free some space, or write somewhere else.",
    errno.EDQUOT: "Free some space, or write somewhere else.",
    errno.EACCES: FORBIDDEN,
    errno.EPERM: FORBIDDEN,
    errno.ENOENT: "Make the folder {folder}, or write somewhere else.",
}

UNFINISHED = ".unfinished"
"""What the names of files end with that are still being written."""


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a new file that then takes the place of ``path`` in one move.

    Raises:
        ArtifactError: The disk is full, or the directory cannot be written; ``path`` is as before.
    """
    beside = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}{UNFINISHED}")
    try:
        write(beside)
        _flush(beside)
        beside.replace(path)
        _flush(path.parent)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        # safetensors tells the system's error in a text of its own.
        advice = ADVICE.get(getattr(error, "errno", None) or errno.ENOSPC, "Write somewhere else.")
        raise ArtifactError(
            f"{path}: cannot be written: {reason(error)}\n"
            f"  What was there before is intact. {advice.format(folder=path.parent)}"
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    write_whole(path, lambda beside: _write_text(beside, text))


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, whole or not at all."""
    # Each tensor by itself and in rows: the format knows neither shared memory nor other layouts.
    plain = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    owners: set[int] = set()
    for name, tensor in plain.items():
        memory = tensor.untyped_storage().data_ptr()
        if memory in owners:
            plain[name] = tensor.clone()
        owners.add(memory)

    def save(beside: Path) -> None:
        beside.touch()
        mode = beside.stat().st_mode
        save_file(plain, beside, metadata=dict(metadata))
        # safetensors makes files that their owner alone may read, whatever the process's mask says.
        beside.chmod(mode)

    write_whole(path, save)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file; nothing in it is executed.

    Raises:
        ArtifactError: There is no such file, or it is none of this format.
    """
    try:
        with path.open("rb") as start:
            _hold(int.from_bytes(start.read(8), "little"), LONGEST_HEADER, "bytes of header")
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            _hold(len(names), MOST_TENSORS, "tensors")
            for name in names:
                shape = file.get_slice(name).get_shape()
                _hold(len(shape), MOST_AXES, "axes of a tensor")
                # The sizes beside a zero hold nothing, and torch multiplies them all the same.
                _hold(math.prod(size or 1 for size in shape), LARGEST_SHAPE, "numbers in a tensor, or beside a zero")
            return {name: file.get_tensor(name) for name in names}, dict(file.metadata() or {})
    except FileNotFoundError as error:
        raise ArtifactError(f"{path}: there is no such file") from error
    except (OSError, SafetensorError, ValueError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path}: this is no whole safetensors file: {reason(error)}") from error


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return the names of tensors that hold infinite numbers or NaN."""
    return [name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]


def remove_leftovers(directory: Path) -> None:
    """Remove what a killed process had not finished writing."""
    for path in directory.glob(f"*{UNFINISHED}"):
        path.unlink(missing_ok=True)


def _hold(claimed: int, most: int, what: str) -> None:
    if claimed > most:
        raise ValueError(f"it claims {claimed:,} {what}, {most:,} are the most")


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
