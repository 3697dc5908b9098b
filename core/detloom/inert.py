"""What a pickle holds when nothing of it is executed.

A name stays a ``Name``, and a call that the file asks for becomes an ``Inert`` that remembers what was asked. The few
calls that make plain data or describe tensors are understood, not made. Names of Python's own modules that no
checkpoint has a use for (``os``, ``subprocess``, ``eval``) are refused outright, so that nobody takes such a file for a
sound one.
"""

import math
import sys
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

__all__ = [
    "Inert",
    "Name",
    "RefusedError",
    "StorageRef",
    "TensorRef",
    "Work",
    "as_key",
    "gathered",
    "is_harmless",
    "made",
    "named",
    "outside",
]

MOST_WORK = 1_000_000
MOST_AXES = 8
LARGEST_NUMBER = 2**48
LONGEST_NAME = 500
# Equal texts are compared letter by letter, and parts of a tuple are hashed anew, each time that they are looked up.
LONGEST_KEY = 4096
MOST_PARTS_OF_KEY = 8
# Numbers below, and texts, hardly collide in a table. Others can be chosen so that each collides with all before it;
# so many comparisons of numbers take as long as one opcode.
PLAIN_NUMBER = 2**20
COLLISIONS_AN_OPCODE = 32
LONGEST_REFERENCE = 6

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


@dataclass(slots=True)
class Work:
    """How much a pickle may still have done: opcodes, and values that one opcode copies or compares."""

    left: int = MOST_WORK

    def spend(self, amount: int) -> None:
        """Take some away.

        Raises:
            RefusedError: Nothing is left.
        """
        self.left -= amount
        if self.left < 0:
            raise RefusedError(
                f"the pickle in this file has more than {MOST_WORK:,} opcodes, those included that copying a value "
                "counts for; no checkpoint has"
            )


def named(module: Any, name: Any) -> Name:
    """Return a name, unless no checkpoint has a use for it; a TypeError is a complaint about the file."""
    if not isinstance(module, str) or not isinstance(name, str):
        raise TypeError
    if max(len(module), len(name)) > LONGEST_NAME:
        raise RefusedError(f"this file has a name of more than {LONGEST_NAME} characters; it is damaged or hostile")
    found = Name(module, name)
    if not is_harmless(found):
        raise RefusedError(
            f"this file names {str(found)!r}, which no checkpoint has a use for and a hostile file has; nothing of "
            "it was executed. Do not load it with anything else"
        )
    return found


def is_harmless(name: Name) -> bool:
    """Return whether a sound checkpoint may have this name."""
    top = name.module.partition(".")[0]
    if top in BUILTINS:
        return name.module in BUILTINS and name.name in HARMLESS_BUILTINS
    # A name may run through what a module has imported: `os.system` of some module of torch.
    through = name.name.split(".")[:-1]
    return (top in HARMLESS_MODULES or top not in OWN_MODULES) and OWN_MODULES.isdisjoint(through)


def as_key(value: Any, beside: int, work: Work) -> Hashable:
    """Return a value that is to be a key; a TypeError is a complaint about the file.

    Args:
        value: What came out of the file.
        beside: How many keys there are already.
        work: What a key that may collide with all of them is charged to.
    """
    # Nested tuples are left out: Python hashes them by recursion without a limit.
    flat: Iterable[Any] = value if isinstance(value, tuple) else (value,)
    if isinstance(value, tuple) and len(value) > MOST_PARTS_OF_KEY:
        raise RefusedError(f"this file has a key of {len(value):,} parts; it is damaged or hostile")
    for each in flat:
        if isinstance(each, str | bytes) and len(each) > LONGEST_KEY:
            raise RefusedError(f"this file has a key of {len(each):,} characters; it is damaged or hostile")
        if each is not None and not isinstance(each, str | int | float | bytes | Name | Inert | TensorRef):
            raise TypeError
    if isinstance(value, tuple | float) or (isinstance(value, int) and abs(value) >= PLAIN_NUMBER):
        work.spend(beside // COLLISIONS_AN_OPCODE)
    assert isinstance(value, Hashable)  # noqa: S101 - narrows the type
    return value


def gathered(values: Iterable[Any], work: Work, into: set[Hashable] | None = None) -> set[Hashable]:
    """Return a set, a given one or a new one, with some values added."""
    found = set() if into is None else into
    for value in values:
        found.add(as_key(value, len(found), work))
    return found


def made(function: object, args: tuple[Any, ...], work: Work) -> Any:
    """Return what a call stands for: plain data or a tensor where it is known, else an inert thing.

    Args:
        function: What is to be called.
        args: What with.
        work: What copies are charged to: a list that is written once can be copied by every opcode.
    """
    understood: Any = Inert(function, args)
    match str(function) if isinstance(function, Name) else "", args:
        case ("collections.OrderedDict", ()):
            understood = {}
        case ("collections.OrderedDict", (list() as pairs,)):
            work.spend(len(pairs))
            understood = {}
            for key, value in pairs:
                understood[as_key(key, len(understood), work)] = value
        case ("builtins.set" | "__builtin__.set", (list() as values,)):
            work.spend(len(values))
            understood = gathered(values, work)
        case ("torch.Size", (tuple() as sizes,)):
            understood = sizes
        case ("torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state", (TensorRef(), *_)):
            understood = args[0]
        case ("torch._utils._rebuild_tensor" | "torch._utils._rebuild_tensor_v2", (_, _, _, _, *_)):
            understood = _tensor(*args[:4])
    return understood


def outside(reference: object) -> Name | StorageRef:
    """Return what a reference to something outside the pickle means: a storage, or in old files a class."""
    if isinstance(reference, tuple) and len(reference) > LONGEST_REFERENCE:
        raise RefusedError("this file refers to something outside in too many words; it is damaged or hostile")
    match reference:
        case ("module", Name() as name, *_):
            return name
        case ("storage", Name() as name, str() as key, _, int() as length, *view):
            if any(each is not None for each in view):
                raise RefusedError("this file was written by a torch before 0.4; save it again with a newer one")
            if name.name not in STORAGES or length < 0 or len(key) > LONGEST_NAME:
                raise RefusedError(f"this file holds a storage of the kind {str(name)!r}, which is not read")
            return StorageRef(key, STORAGES[name.name], length)
    raise RefusedError("this file refers to something outside that is no storage; it is damaged")


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> TensorRef:
    if not isinstance(storage, StorageRef) or not isinstance(shape, tuple) or not isinstance(strides, tuple):
        raise TypeError
    if len(shape) != len(strides) or len(shape) > MOST_AXES:
        raise TypeError
    numbers = (offset, *shape, *strides)
    if not all(type(each) is int for each in numbers):
        raise TypeError
    if min(numbers) < 0 or max(numbers) >= LARGEST_NUMBER:
        raise ValueError
    # A tensor has as many numbers as its storage at most: copies of the same number could fill any memory.
    count, last = 1, offset
    for size, stride in zip(shape, strides, strict=True):
        count *= size
        last += (size - 1) * stride
    # The sizes beside a zero hold nothing, and torch multiplies them all the same.
    beside = math.prod(size or 1 for size in shape)
    if count > storage.length or (count and last >= storage.length) or beside >= LARGEST_NUMBER:
        raise RefusedError(
            f"this file describes a tensor of shape {list(shape)} in a storage of {storage.length:,} numbers; "
            "it is damaged or hostile"
        )
    return TensorRef(storage, offset, shape, strides)
