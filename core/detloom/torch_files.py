"""Files of ``torch.save`` read without executing anything: the zip form, and the stream of old versions.

Storages stay in the file until a tensor that lies in them is wanted. Every length is held against the length of the
file before memory is taken.
"""

import math
import mmap
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from detloom.errors import ArtifactError, reason
from detloom.inert import LONGEST_NAME, StorageRef, TensorRef
from detloom.unpickle import unpickle

__all__ = ["TorchFile"]

ZIP_START = b"PK\x03\x04"
PICKLE_START = b"\x80"
LARGEST_DIRECTORY = 4 * 2**20
LOCAL_HEADER = struct.Struct("<4s22xHH")
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
# Of the pickles between the magic number and the value, which hold numbers and a few short names.
LONGEST_PREFACE = 4096
# A tensor that is a slice of a storage takes its gaps with it; no checkpoint has much of that.
LARGEST_GAPS = 4

Locate = Callable[[StorageRef], tuple[int, int]]
"""Start and length in bytes of a storage in the file."""


class TorchFile:
    """What ``torch.save`` wrote, with tensors as references.

    Attributes:
        value: The saved value, as ``Unpickled`` describes it.

    Raises:
        ArtifactError: It is no such file, it is damaged, or it is hostile.
    """

    value: Any

    def __init__(self, path: Path) -> None:
        self._path = path
        self._taken = 0
        try:
            with path.open("rb") as file:
                self._bytes = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
                entries = _entries(file, path) if self._bytes[: len(ZIP_START)] == ZIP_START else None
        except FileNotFoundError as error:
            raise ArtifactError(f"{path}: there is no such file") from error
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{path}: the file is empty or cannot be read: {reason(error)}") from error
        if entries is not None:
            self.value, self._locate = _read_zip(entries, self._bytes, path)
        elif self._bytes[: len(PICKLE_START)] == PICKLE_START:
            self.value, self._locate = _read_stream(self._bytes, path)
        else:
            raise ArtifactError(
                f"{path}: this is no file of torch.save, nor of safetensors; was it fetched whole, and not its page?"
            )

    def tensor(self, ref: TensorRef) -> Tensor:
        """Return a copy of a tensor, in the precision of the file.

        Raises:
            ArtifactError: Its storage is missing or damaged, or the file's tensors are larger than the file.
        """
        storage, dtype = ref.storage, getattr(torch, ref.storage.dtype)
        start, length = self._locate(storage)
        if length != storage.length * dtype.itemsize:
            raise ArtifactError(
                f"{self._path}: storage {storage.key!r} has {length:,} bytes, {storage.length * dtype.itemsize:,} were "
                "declared; fetch or copy the file again"
            )
        count = math.prod(ref.shape)
        if not count:
            return torch.empty(ref.shape, dtype=dtype)
        span = 1 + sum((size - 1) * stride for size, stride in zip(ref.shape, ref.strides, strict=True))
        self._taken += span * dtype.itemsize
        if not count <= span <= LARGEST_GAPS * count or self._taken > 2 * len(self._bytes):
            raise ArtifactError(
                f"{self._path}: the tensors of this file lie over each other or apart as no checkpoint's do; it "
                "is hostile, or was saved as views: save it again with every tensor cloned"
            )
        first = start + ref.offset * dtype.itemsize
        numbers = bytearray(self._bytes[first : first + span * dtype.itemsize])
        flat = torch.frombuffer(numbers, dtype=dtype)
        return flat.as_strided(ref.shape, ref.strides).contiguous()


def _entries(file: BinaryIO, path: Path) -> list[zipfile.ZipInfo]:
    try:
        return zipfile.ZipFile(_Bounded(file)).infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, OSError, struct.error) as error:
        raise ArtifactError(f"{path}: this is no whole zip file: {error}; fetch or copy the file again") from error


def _read_zip(entries: list[zipfile.ZipInfo], content: memoryview, path: Path) -> tuple[Any, Locate]:
    named = {entry.filename: entry for entry in entries if len(entry.filename) <= LONGEST_NAME}
    if len(named) != len(entries) or sum(entry.file_size for entry in entries) > len(content):
        raise ArtifactError(f"{path}: the entries of this zip file lie over each other; it is damaged or hostile")
    roots = [name.removesuffix("/data.pkl") for name in named if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise ArtifactError(f"{path}: this zip file is no file of torch.save: it has no data.pkl in its folder")
    root = roots[0]
    if f"{root}/constants.pkl" in named:
        raise ArtifactError(
            f"{path}: this is a TorchScript program, not a checkpoint; import the checkpoint it was made from"
        )
    sound: dict[str, tuple[int, int]] = {}

    def locate(name: str) -> tuple[int, int]:
        if name not in sound:
            if name not in named:
                raise ArtifactError(f"{path}: entry {name!r} is missing; fetch or copy the file again")
            sound[name] = _locate_entry(named[name], content, path)
        return sound[name]

    if f"{root}/byteorder" in named:
        start, length = locate(f"{root}/byteorder")
        if bytes(content[start : start + min(length, 8)]) != b"little":
            raise ArtifactError(f"{path}: this file was saved on a big-endian machine; save it again on another")
    start, length = locate(f"{root}/data.pkl")
    value = unpickle(content[start : start + length], str(path)).value
    return value, lambda storage: locate(f"{root}/data/{storage.key}")


def _locate_entry(entry: zipfile.ZipInfo, content: memoryview, path: Path) -> tuple[int, int]:
    """Return start and length of an entry that is not compressed and whose checksum is right."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size or entry.flag_bits & 1:
        raise ArtifactError(
            f"{path}: entry {entry.filename!r} is compressed or encrypted, which torch.save does not do; unpack the "
            "file and zip it again without compression"
        )
    header = content[max(entry.header_offset, 0) :][: LOCAL_HEADER.size]
    if len(header) < LOCAL_HEADER.size:
        raise ArtifactError(f"{path}: entry {entry.filename!r} lies beyond the file's end; fetch or copy it again")
    magic, name_length, extra_length = LOCAL_HEADER.unpack(header)
    start = entry.header_offset + LOCAL_HEADER.size + name_length + extra_length
    data = content[start : start + entry.file_size]
    if magic != ZIP_START or len(data) != entry.file_size or zlib.crc32(data) != entry.CRC:
        raise ArtifactError(f"{path}: entry {entry.filename!r} is damaged; fetch or copy the file again")
    return start, entry.file_size


class _Bounded:
    """A file that refuses to be read in outsized pieces, as a declared size may ask for."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek = file.seek
        self.tell = file.tell
        self.seekable = file.seekable

    def read(self, count: int = -1) -> bytes:
        """Return some bytes."""
        found = self._file.read(LARGEST_DIRECTORY + 1 if count < 0 else min(count, LARGEST_DIRECTORY + 1))
        if len(found) > LARGEST_DIRECTORY:
            raise OSError(f"its directory claims more than {LARGEST_DIRECTORY:,} bytes")
        return found


def _read_stream(content: memoryview, path: Path) -> tuple[Any, Locate]:
    where = str(path)
    # Four pickles in a row: a magic number, a version, the machine that saved, the value; then the storages' keys.
    magic = unpickle(content, where)
    if magic.value != LEGACY_MAGIC:
        raise ArtifactError(f"{path}: this is a pickle, but none that torch.save wrote; it was not executed")
    protocol = unpickle(content, where, start=magic.end, longest=LONGEST_PREFACE)
    system = unpickle(content, where, start=protocol.end, longest=LONGEST_PREFACE)
    if (
        protocol.value != LEGACY_PROTOCOL
        or not isinstance(system.value, dict)
        or system.value.get("little_endian") is not True
    ):
        raise ArtifactError(f"{path}: this file was saved by another kind of machine or torch; save it again")
    saved = unpickle(content, where, start=system.end)
    keys = unpickle(content, where, start=saved.end)
    if not isinstance(keys.value, list) or not all(
        isinstance(key, str) and len(key) <= LONGEST_NAME for key in keys.value
    ):
        raise ArtifactError(f"{path}: the list of storages in this file is damaged; fetch or copy the file again")
    at = keys.end
    places: dict[str, tuple[int, int]] = {}
    for key in keys.value:
        if key not in saved.storages or at + 8 > len(content):
            raise ArtifactError(f"{path}: storage {key!r} is missing or cut short; fetch or copy the file again")
        # A storage states its length in elements; what an element is, the value says that refers to it.
        (count,) = struct.unpack("<q", content[at : at + 8])
        length = count * getattr(torch, saved.storages[key].dtype).itemsize
        if count < 0 or at + 8 + length > len(content):
            raise ArtifactError(f"{path}: storage {key!r} is cut short; fetch or copy the file again")
        places[key] = (at + 8, length)
        at += 8 + length

    def locate(storage: StorageRef) -> tuple[int, int]:
        if storage.key not in places:
            raise ArtifactError(f"{path}: storage {storage.key!r} is missing; fetch or copy the file again")
        return places[storage.key]

    return saved.value, locate
