"""Pickles read without executing anything.

An interpreter of its own for the opcodes that checkpoints are written with. Nothing that a file names is imported or
called; see ``inert`` for what becomes of it.

What a file declares is believed only as far as the file is long. Opcodes are counted, and so is what one of them
copies: a value that is written once can be used by all of them. Nothing here recurses.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from detloom.errors import ArtifactError
from detloom.inert import (
    LONGEST_NAME,
    MOST_WORK,
    Inert,
    RefusedError,
    StorageRef,
    TensorRef,
    Work,
    as_key,
    gathered,
    made,
    named,
    outside,
)

__all__ = ["Unpickled", "unpickle"]

LONGEST_STREAM = 32 * 2**20
NEWEST_PROTOCOL = 5


@dataclass(frozen=True, slots=True)
class Unpickled:
    """What a pickle holds.

    Attributes:
        value: None, booleans, numbers, text, bytes, lists, tuples, dicts, sets, and the classes of ``inert``.
        end: Where the pickle ends in its stream.
        storages: Every storage that it refers to, by key.
    """

    value: Any
    end: int
    storages: dict[str, StorageRef]


def unpickle(stream: memoryview, where: str, *, start: int = 0, longest: int = LONGEST_STREAM) -> Unpickled:
    """Return what the pickle at ``start`` holds.

    Args:
        stream: Bytes that contain it.
        where: The file, for complaints.
        start: Offset of the pickle.
        longest: How many bytes it may have.

    Raises:
        ArtifactError: It is no whole pickle, it is outsized, or it names what no checkpoint has a use for.
    """
    machine = _Machine(stream[start : start + longest])
    try:
        value = machine.run()
    except RefusedError as error:
        raise ArtifactError(f"{where}: {error}") from error
    except (IndexError, KeyError, TypeError, ValueError, OverflowError, struct.error) as error:
        raise ArtifactError(
            f"{where}: the pickle in this file is damaged at byte {machine.at}: {type(error).__name__}; "
            "fetch or copy the file again"
        ) from error
    return Unpickled(value, start + machine.at, machine.storages)


@dataclass(slots=True)
class _Machine:
    """A stack, marks into it, a memo, and a place in the stream."""

    stream: memoryview
    at: int = 0
    stack: list[Any] = field(default_factory=list)
    marked: list[list[Any]] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)
    storages: dict[str, StorageRef] = field(default_factory=dict)
    work: Work = field(default_factory=Work)

    def run(self) -> Any:
        """Execute opcodes until the one that stops."""
        while True:
            self.work.spend(1)
            code = self.take(1)[0]
            if code == STOP:
                (value,) = self.stack
                if self.marked:
                    raise RefusedError("the pickle in this file stops inside of a sequence; the file is damaged")
                return value
            action = ACTIONS.get(code)
            if action is None:
                raise RefusedError(
                    f"the pickle in this file uses the opcode {code:#04x}, which torch writes no checkpoint with; the "
                    "file is damaged, of another kind, or hostile"
                )
            action(self)

    def take(self, count: int) -> memoryview:
        """Return the next bytes of the stream."""
        taken = self.stream[self.at : self.at + count]
        if len(taken) != count or count < 0:
            raise RefusedError(
                f"the pickle in this file declares {count:,} bytes where {len(taken):,} are left; it was cut short"
            )
        self.at += count
        return taken

    def number(self, form: str) -> int:
        """Return the next number of a ``struct`` form."""
        (value,) = struct.unpack(form, self.take(struct.calcsize(form)))
        return int(value)

    def text(self, form: str) -> str:
        """Return the next text, whose length is the number before it."""
        return str(self.take(self.number(form)), "utf-8")

    def line(self) -> str:
        """Return the text up to the end of the line."""
        found = bytes(self.stream[self.at : self.at + LONGEST_NAME]).partition(b"\n")
        if not found[1]:
            raise RefusedError("the pickle in this file has a name without an end; it is damaged")
        self.at += len(found[0]) + 1
        return found[0].decode("utf-8")

    def items(self) -> list[Any]:
        """Return what lies above the last mark, and go below it."""
        above = self.stack
        self.stack = self.marked.pop()
        return above

    def push(self, value: Any) -> None:
        """Put a value on the stack."""
        self.stack.append(value)

    def mark(self) -> None:
        """Begin a sequence."""
        self.marked.append(self.stack)
        self.stack = []

    def pop(self) -> None:
        """Drop a value."""
        if self.stack:
            self.stack.pop()
        else:
            self.items()

    def remember(self, index: int) -> None:
        """Keep the uppermost value under a number."""
        # They are counted from zero; others could be chosen so that they collide.
        if index > MOST_WORK:
            raise IndexError
        self.memo[index] = self.stack[-1]

    def protocol(self) -> None:
        """Check the version."""
        if self.number("<B") > NEWEST_PROTOCOL:
            raise RefusedError(f"the pickle in this file has a protocol above {NEWEST_PROTOCOL}; it is damaged")

    def tuple_of(self, count: int) -> None:
        """Make a tuple of the uppermost values."""
        if len(self.stack) < count:
            raise IndexError
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def append(self, values: list[Any]) -> None:
        """Add to a list; what is no list takes nothing."""
        into = self.stack[-1]
        if isinstance(into, list):
            into.extend(values)
        elif not isinstance(into, Inert):
            raise TypeError

    def set_items(self, values: list[Any]) -> None:
        """Add keys and values to a dict."""
        into = self.stack[-1]
        if len(values) % 2:
            raise ValueError
        if isinstance(into, dict):
            for key, value in zip(values[::2], values[1::2], strict=True):
                into[as_key(key, len(into), self.work)] = value
        elif not isinstance(into, Inert):
            raise TypeError

    def add(self, values: list[Any]) -> None:
        """Add to a set."""
        into = self.stack[-1]
        if isinstance(into, set):
            gathered(values, self.work, into)
        elif not isinstance(into, Inert):
            raise TypeError

    def stack_name(self) -> None:
        """Put the name on the stack that lies there as two texts."""
        name, module = self.stack.pop(), self.stack.pop()
        self.push(named(module, name))

    def reduce(self) -> None:
        """Understand a call, or remember it."""
        args, function = self.stack.pop(), self.stack.pop()
        if not isinstance(args, tuple):
            raise TypeError
        self.push(made(function, args, self.work))

    def new_with_keywords(self) -> None:
        """Remember a call with keywords."""
        self.stack.pop()
        self.reduce()

    def build(self) -> None:
        """Remember what an object's attributes are to be set from."""
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Inert):
            target.state = state
        elif not isinstance(target, dict | TensorRef):
            raise RefusedError(
                f"this file sets attributes of a {type(target).__name__}, which no checkpoint does; it is hostile"
            )

    def persistent(self) -> None:
        """Put a storage, or in old files the class of a module, on the stack."""
        held = outside(self.stack.pop())
        if isinstance(held, StorageRef):
            held = self.storages.setdefault(held.key, held)
        self.push(held)


def _long(machine: _Machine) -> None:
    machine.push(int.from_bytes(machine.take(machine.number("<B")), "little", signed=True))


STOP = ord(".")
ACTIONS: dict[int, Callable[[_Machine], Any]] = {
    0x80: lambda m: m.protocol(),
    0x95: lambda m: m.take(8),  # the length of a frame, which speeds reading up and nothing else
    ord("("): lambda m: m.mark(),
    ord("0"): lambda m: m.pop(),
    ord("1"): lambda m: m.items(),
    ord("2"): lambda m: m.push(m.stack[-1]),
    # Values
    ord("N"): lambda m: m.push(None),
    0x88: lambda m: m.push(True),  # noqa: FBT003 - a value, not a switch
    0x89: lambda m: m.push(False),  # noqa: FBT003 - the same
    ord("J"): lambda m: m.push(m.number("<i")),
    ord("K"): lambda m: m.push(m.number("<B")),
    ord("M"): lambda m: m.push(m.number("<H")),
    0x8A: _long,
    ord("G"): lambda m: m.push(struct.unpack(">d", m.take(8))[0]),
    ord("X"): lambda m: m.push(m.text("<I")),
    0x8C: lambda m: m.push(m.text("<B")),
    0x8D: lambda m: m.push(m.text("<Q")),
    ord("U"): lambda m: m.push(m.text("<B")),
    ord("T"): lambda m: m.push(m.text("<i")),
    ord("C"): lambda m: m.push(bytes(m.take(m.number("<B")))),
    ord("B"): lambda m: m.push(bytes(m.take(m.number("<I")))),
    0x8E: lambda m: m.push(bytes(m.take(m.number("<Q")))),
    0x96: lambda m: m.push(bytes(m.take(m.number("<Q")))),
    # Containers
    ord("]"): lambda m: m.push([]),
    ord("a"): lambda m: m.append([m.stack.pop()]),
    ord("e"): lambda m: m.append(m.items()),
    ord("l"): lambda m: m.push(m.items()),
    ord(")"): lambda m: m.push(()),
    ord("t"): lambda m: m.push(tuple(m.items())),
    0x85: lambda m: m.tuple_of(1),
    0x86: lambda m: m.tuple_of(2),
    0x87: lambda m: m.tuple_of(3),
    ord("}"): lambda m: m.push({}),
    ord("s"): lambda m: m.set_items([m.stack.pop(), m.stack.pop()][::-1]),
    ord("u"): lambda m: m.set_items(m.items()),
    0x8F: lambda m: m.push(set()),
    0x90: lambda m: m.add(m.items()),
    0x91: lambda m: m.push(frozenset(gathered(m.items(), m.work))),
    # The memo
    ord("q"): lambda m: m.remember(m.number("<B")),
    ord("r"): lambda m: m.remember(m.number("<I")),
    0x94: lambda m: m.remember(len(m.memo)),
    ord("h"): lambda m: m.push(m.memo[m.number("<B")]),
    ord("j"): lambda m: m.push(m.memo[m.number("<I")]),
    # What would be imported, called or changed
    ord("c"): lambda m: m.push(named(m.line(), m.line())),
    0x93: lambda m: m.stack_name(),
    ord("R"): lambda m: m.reduce(),
    0x81: lambda m: m.reduce(),
    0x92: lambda m: m.new_with_keywords(),
    ord("b"): lambda m: m.build(),
    ord("Q"): lambda m: m.persistent(),
}
"""What each opcode does. Those that parse text, and those of extensions, are missing on purpose."""
