"""What a pickle holds when nothing of it is executed.

A name stays a ``Name``, and a call that the file asks for becomes an ``Inert`` that remembers what was asked. The few
calls that make plain data or describe tensors are understood, not made. Names of Python's own modules that no
checkpoint has a use for (``os``, ``subprocess``, ``eval``) are refused outright, so that nobody takes such a file for a
sound one.
"""

import sys
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

__all__ = ["Inert", "Name", "RefusedError", "StorageRef", "TensorRef", "as_key", "is_harmless", "made", "outside"]

MOST_AXES = 8

# Element types of the storages that torch names in its files.
STORAGES = {
    "BFloat16Storage": "bfloat16",
    "BoolStorage": "bool",
    "ByteStorage": "uint8",
    "CharStorage": "int8",
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "IntStorage": "int32",
    "LongStorage": "int64",
    "ShortStorage": "int16",
    "UntypedStorage": "uint8",
}

# Modules of Python whose names are found in sound checkpoints. They are not imported either.
HARMLESS_MODULES = frozenset(
    {"_codecs", "argparse", "collections", "copy_reg", "copyreg", "datetime", "enum", "functools", "pathlib", "uuid"}
)
HARMLESS_BUILTINS = frozenset(
    {
        *("bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "object", "range"),
        *("set", "slice", "str", "tuple"),
    }
)
BUILTINS = ("builtins", "__builtin__")
# Python 2 called some of its modules differently.
OWN_MODULES = sys.stdlib_module_names | {"__builtin__", "cPickle", "commands", "copy_reg", "popen2"}


@dataclass(frozen=True, slots=True)
class Name:
    """A class or function that a file names; it is never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        """Return the dotted name."""
        return f"{self.module}.{self.name}"


@dataclass(slots=True, eq=False)
class Inert:
    """What a call would have made, had it been made.

    Attributes:
        of: What was to be called: a name, or another inert thing.
        args: What it was to be called with.
        state: What its attributes were to be set from.
    """

    of: object
    args: object = ()
    state: object = None


@dataclass(frozen=True, slots=True)
class StorageRef:
    """Numbers that lie outside the pickle, in the file's storage ``key``."""

    key: str
    dtype: str
    length: int


@dataclass(frozen=True, slots=True, eq=False)
class TensorRef:
    """A view of a storage; offset and strides count elements."""

    storage: StorageRef
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class RefusedError(Exception):
    """The pickle asks for what is not read; the reader adds the file's name."""


def is_harmless(named: Name) -> bool:
    """Return whether a sound checkpoint may have this name."""
    top = named.module.partition(".")[0]
    if top in BUILTINS:
        return named.module in BUILTINS and named.name in HARMLESS_BUILTINS
    # A name may run through what a module has imported: `os.system` of some module of torch.
    through = named.name.split(".")[:-1]
    return (top in HARMLESS_MODULES or top not in OWN_MODULES) and OWN_MODULES.isdisjoint(through)


def as_key(value: Any) -> Hashable:
    """Return a value that is to be a key; a TypeError is a complaint about the file."""
    # Nested tuples are left out: Python hashes them by recursion without a limit.
    flat: Iterable[Any] = value if isinstance(value, tuple) else (value,)
    if all(each is None or isinstance(each, str | int | float | bytes | Name | Inert | TensorRef) for each in flat):
        assert isinstance(value, Hashable)  # noqa: S101 - narrows the type
        return value
    raise TypeError


def made(function: object, args: tuple[Any, ...]) -> Any:
    """Return what a call stands for: plain data or a tensor where it is known, else an inert thing."""
    understood: Any = Inert(function, args)
    match str(function) if isinstance(function, Name) else "", args:
        case ("collections.OrderedDict", ()):
            understood = {}
        case ("collections.OrderedDict", (list() as pairs,)):
            understood = {as_key(key): value for key, value in pairs}
        case ("builtins.set" | "__builtin__.set", (list() as values,)):
            understood = set(map(as_key, values))
        case ("torch.Size", (tuple() as sizes,)):
            understood = sizes
        case ("torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state", (TensorRef(), *_)):
            understood = args[0]
        case ("torch._utils._rebuild_tensor" | "torch._utils._rebuild_tensor_v2", (_, _, _, _, *_)):
            understood = _tensor(*args[:4])
    return understood


def outside(reference: object) -> Name | StorageRef:
    """Return what a reference to something outside the pickle means: a storage, or in old files a class."""
    match reference:
        case ("module", Name() as name, *_):
            return name
        case ("storage", Name() as name, str() as key, _, int() as length, *view):
            if any(each is not None for each in view):
                raise RefusedError("this file was written by a torch before 0.4; save it again with a newer one")
            if name.name not in STORAGES or length < 0:
                raise RefusedError(f"this file holds a storage of the kind {str(name)!r}, which is not read")
            return StorageRef(key, STORAGES[name.name], length)
    raise RefusedError("this file refers to something outside that is no storage; it is damaged")


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> TensorRef:
    if not isinstance(storage, StorageRef) or not isinstance(shape, tuple) or not isinstance(strides, tuple):
        raise TypeError
    numbers = (offset, *shape, *strides)
    if len(shape) != len(strides) or len(shape) > MOST_AXES or not all(type(each) is int for each in numbers):
        raise TypeError
    if min(numbers) < 0 or max(numbers) >= 2**48:
        raise ValueError
    # A tensor has as many numbers as its storage at most: copies of the same number could fill any memory.
    count, last = 1, offset
    for size, stride in zip(shape, strides, strict=True):
        count *= size
        last += (size - 1) * stride
    if count > storage.length or (count and last >= storage.length):
        raise RefusedError(
            f"this file describes a tensor of shape {list(shape)} in a storage of {storage.length:,} numbers; "
            "it is damaged or hostile"
        )
    return TensorRef(storage, offset, shape, strides)
