"""Hostile and broken checkpoints: nothing in them is executed, and none of them fills the memory.

What would execute is proved to: Python's own unpickler, given the same bytes, leaves a mark; the reader must not.
"""

import copyreg
import json
import os
import pickle
import struct
import subprocess
import sys
import tracemalloc
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from detloom.errors import ArtifactError
from detloom.foreign import read_checkpoint
from detloom.inert import Inert, Name
from detloom.unpickle import unpickle

Build = Callable[[Path], bytes]
Wrap = Callable[[bytes], bytes]

STOP = b"."
MEMORY = 256 * 2**20
DEEP = 100_000
EXTENSION = 240
CUTS = 40


def text(value: str) -> bytes:
    """Return the opcode that pushes a text."""
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    """Return the opcode that pushes a number."""
    size = value.bit_length() // 8 + 1
    return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)


def name(module: str, attribute: str) -> bytes:
    """Return the opcode that pushes what a module calls by a name."""
    return f"c{module}\n{attribute}\n".encode()


def dotted(module: str, attribute: str) -> bytes:
    """Return the same for a name that runs through other modules, as protocol 4 has it."""
    return b"\x80\x04" + text(module) + text(attribute) + b"\x93"


def called(function: bytes, *args: bytes) -> bytes:
    """Return the opcodes of a call."""
    return function + b"(" + b"".join(args) + b"tR"


def table(*pairs: tuple[bytes, bytes]) -> bytes:
    """Return the opcodes of a dict."""
    return b"}(" + b"".join(key + value for key, value in pairs) + b"u"


def shell(mark: Path) -> bytes:
    return text(f"touch {mark}")


def python(mark: Path) -> bytes:
    return text(f"open({str(mark)!r}, 'w').close()")


class Reduced:
    """Pickles as a call."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def getattr_chain(mark: Path) -> bytes:
    system = called(name("builtins", "getattr"), called(name("builtins", "__import__"), text("os")), text("system"))
    return called(system, shell(mark)) + STOP


def attribute_getter(mark: Path) -> bytes:
    getter = called(name("operator", "attrgetter"), text("system"))
    return called(called(getter, called(name("importlib", "import_module"), text("os"))), shell(mark)) + STOP


def nested_build(mark: Path) -> bytes:
    """Make a harmless partial, set its function, call it."""
    partial = called(name("functools", "partial"), name("collections", "OrderedDict"))
    state = b"(" + name("os", "system") + b"(" + shell(mark) + b"t" + b"}" + b"Nt"
    return called(partial + state + b"b") + STOP


def build_of_a_method(mark: Path) -> bytes:
    """Give an object a method by one BUILD, and have the next one call it."""
    method = table((text("__setstate__"), name("os", "system")))
    return name("argparse", "Namespace") + b")\x81" + method + b"b" + shell(mark) + b"b" + STOP


def build_within_build(mark: Path) -> bytes:
    """Hide the call in the state of a module inside the state of a module."""
    inner = name("torch.nn", "Module") + b")\x81" + table((text("x"), called(name("os", "system"), shell(mark)))) + b"b"
    return name("torch.nn", "Module") + b")\x81" + table((text("y"), inner)) + b"b" + STOP


def old_instance(mark: Path) -> bytes:
    return b"(" + shell(mark) + b"ios\nsystem\n" + STOP


def old_object(mark: Path) -> bytes:
    return b"(" + name("subprocess", "Popen") + b"](" + text("touch") + text(str(mark)) + b"eo" + STOP


def new_object(mark: Path) -> bytes:
    """Have a lazy map call, by making it and then running through it."""
    mapped = name("builtins", "map") + b"(" + name("os", "system") + b"](" + shell(mark) + b"et\x81"
    return called(name("builtins", "list"), mapped) + STOP


EXECUTED: dict[str, Build] = {
    "os.system by protocol 0": lambda mark: pickle.dumps(Reduced(os.system, f"touch {mark}"), 0),
    "os.system by protocol 2": lambda mark: pickle.dumps(Reduced(os.system, f"touch {mark}"), 2),
    "os.system by protocol 4": lambda mark: pickle.dumps(Reduced(os.system, f"touch {mark}"), 4),
    "os.system by protocol 5": lambda mark: pickle.dumps(Reduced(os.system, f"touch {mark}"), 5),
    "os.system by its other name": lambda mark: called(name("posix", "system"), shell(mark)) + STOP,
    "subprocess.call": lambda mark: pickle.dumps(Reduced(subprocess.call, ["touch", str(mark)])),
    "eval": lambda mark: called(name("builtins", "eval"), python(mark)) + STOP,
    "exec": lambda mark: called(name("builtins", "exec"), python(mark)) + STOP,
    "exec of Python 2": lambda mark: called(name("__builtin__", "exec"), python(mark)) + STOP,
    "open": lambda mark: called(name("io", "open"), text(str(mark)), text("w")) + STOP,
    "pathlib through its own imports": lambda mark: called(dotted("pathlib", "os.system"), shell(mark)) + STOP,
    "timeit": lambda mark: (
        called(name("timeit", "timeit"), python(mark), text("pass"), name("time", "time"), number(1)) + STOP
    ),
    "cProfile": lambda mark: called(name("cProfile", "run"), python(mark), text(os.devnull)) + STOP,
    "runpy": lambda mark: called(name("runpy", "_run_code"), python(mark), b"}") + STOP,
    "getattr chain": getattr_chain,
    "attrgetter on an import": attribute_getter,
    "nested build": nested_build,
    "build of a method": build_of_a_method,
    "build within build": build_within_build,
    "INST": old_instance,
    "OBJ": old_object,
    "NEWOBJ": new_object,
    "EXT": lambda mark: called(b"\x82" + bytes([EXTENSION]), shell(mark)) + STOP,
    "a name through torch": lambda mark: called(dotted("torch.hub", "os.system"), shell(mark)) + STOP,
    "a name through numpy": lambda mark: (
        called(name("numpy.testing._private.utils", "runstring"), python(mark), b"}") + STOP
    ),
    "through the memo": lambda mark: name("os", "system") + b"q\x050" + called(b"h\x05", shell(mark)) + STOP,
    "beside weights": lambda mark: table((text("model"), called(name("os", "system"), shell(mark)))) + STOP,
    "as a key": lambda mark: table((called(name("os", "system"), shell(mark)), number(1))) + STOP,
    "in a set": lambda mark: b"\x8f(" + called(name("os", "system"), shell(mark)) + b"\x90" + STOP,
    "as a parameter": lambda mark: (
        called(
            name("torch._utils", "_rebuild_parameter"),
            called(name("torch", "zeros"), called(name("os", "system"), shell(mark))),
            b"\x89",
            called(name("collections", "OrderedDict")),
        )
        + STOP
    ),
}


def bare(data: bytes) -> bytes:
    return data if data.startswith(b"\x80") else b"\x80\x02" + data


def zipped(data: bytes, storages: Mapping[str, bytes] | None = None, **kind: Any) -> bytes:
    """Return a file as torch.save writes it now."""
    file = BytesIO()
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(file, "w", **kind) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/byteorder", "little")
        for key, content in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", content)
    return file.getvalue()


def streamed(data: bytes, storages: Mapping[str, bytes] | None = None) -> bytes:
    """Return a file as torch.save used to write it."""
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    head = [pickle.dumps(each, 2) for each in (0x1950A86A20F9469CFC6C, 1001, system)]
    tail = [struct.pack("<q", len(each) // 4) + each for each in (storages or {}).values()]
    return b"".join((*head, data, pickle.dumps(list(storages or {}), 2), *tail))


WRAPS: dict[str, Wrap] = {"bare": bare, "zip": zipped, "stream": streamed}


@pytest.fixture
def extension() -> Iterator[None]:
    """Have a name behind an extension code, as a program might."""
    copyreg.add_extension("os", "system", EXTENSION)
    yield
    copyreg.remove_extension("os", "system", EXTENSION)


def refused(data: bytes, folder: Path) -> str:
    """Return the complaint about a file."""
    path = folder / "hostile.pt"
    path.write_bytes(data)
    with pytest.raises(ArtifactError) as error:
        read_checkpoint(path)
    return str(error.value)


@pytest.mark.usefixtures("extension")
@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("case", EXECUTED)
def test_what_others_execute_is_refused_and_not_executed(case: str, wrap: str, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    data = EXECUTED[case](mark)

    complaint = refused(WRAPS[wrap](data), tmp_path)

    assert str(tmp_path / "hostile.pt") in complaint
    assert not mark.exists()


@pytest.mark.usefixtures("extension")
@pytest.mark.parametrize("case", EXECUTED)
def test_the_same_bytes_are_executed_by_others(case: str, tmp_path: Path) -> None:
    mark = tmp_path / "executed"

    try:
        value = pickle.loads(EXECUTED[case](mark))  # noqa: S301 - to prove that the case above is a case
        if isinstance(value, subprocess.Popen):
            value.wait()
    except (AttributeError, TypeError, ValueError):
        pass  # after the call, what is made of its result may fail

    assert mark.exists()


def test_a_name_without_use_is_named_in_the_complaint(tmp_path: Path) -> None:
    data = called(name("os", "system"), text("true")) + STOP

    assert "names 'os.system', which no checkpoint has a use for" in refused(zipped(data), tmp_path)


def test_names_in_complaints_give_a_terminal_no_orders(tmp_path: Path) -> None:
    hostile = called(name("os", "\x1b[2J")) + STOP
    odd = table((text("\x1b[2J"), number(1))) + STOP

    assert "\x1b" not in refused(zipped(hostile), tmp_path)
    assert "\x1b" not in refused(zipped(odd), tmp_path)


def test_strangers_become_inert() -> None:
    data = name("models.yolo", "Model") + b")\x81" + table((text("nc"), number(3))) + b"b" + STOP

    value = unpickle(memoryview(data), "file").value

    assert isinstance(value, Inert)
    assert (value.of, value.state) == (Name("models.yolo", "Model"), {"nc": 3})


def storage(key: str, length: int, kind: str = "FloatStorage") -> bytes:
    return b"(" + text("storage") + name("torch", kind) + text(key) + text("cpu") + number(length) + b"tQ"


def shaped(numbers: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(number, numbers)) + b"t"


def tensor(stored: bytes, shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0) -> bytes:
    rebuild = name("torch._utils", "_rebuild_tensor_v2")
    return called(rebuild, stored, number(offset), shaped(shape), shaped(strides), b"\x89", b"N")


def weights(*tensors: bytes) -> bytes:
    """Return a state_dict."""
    return table(*((text(f"w{index}"), each) for index, each in enumerate(tensors))) + STOP


def module(**children: bytes) -> bytes:
    state = table((text("_modules"), table(*((text(key), child) for key, child in children.items()))))
    return name("torch.nn", "Module") + b")\x81" + state + b"b"


def twofold(depth: int) -> bytes:
    """Return a network in which each module has the next one twice: 2 to the depth paths."""
    data = module() + b"q\x00"
    for _ in range(depth):
        data += b"0" + module(a=b"h\x00", b=b"h\x00") + b"q\x00"
    return data + STOP


LAUGHS = b"]q\x000" + b"](h\x00h\x00eq\x000" * 200 + b"h\x00" + STOP
CYCLE = (
    name("torch.nn", "Module") + b")\x81q\x00" + table((text("_modules"), table((text("a"), b"h\x00")))) + b"b" + STOP
)
BOMB = zipped(b"\x00" * 2**26, compression=zipfile.ZIP_DEFLATED)
FOUR = {"0": bytes(16)}

ASTRAL = "\U0001f600"
# Hashes are remainders by this number, so that its multiples collide.
MODULUS = 2**61 - 1


def again(value: bytes, opcodes: bytes, times: int) -> bytes:
    """Return a list of what some opcodes, in which ``h\\x00`` is one value, make of it many times."""
    return value + b"q\x000(" + opcodes * times + b"l" + STOP


def numbers(count: int) -> bytes:
    return b"".join(map(number, range(count)))


def multiples(count: int, *after: bytes) -> bytes:
    """Return keys that collide."""
    return b"".join(number(MODULUS * index) + b"".join(after) for index in range(count))


def network_of(callable_: bytes) -> bytes:
    """Return a network whose class is any value."""
    return callable_ + b")R" + table((text("_modules"), b"}")) + b"b" + STOP


def twofold_of(key: str, depth: int) -> bytes:
    """Return the same as ``twofold``, with a long key."""
    data = text(key) + b"q\x010" + module() + b"q\x00"
    for _ in range(depth):
        children = table((b"h\x01", b"h\x00"), (text("b"), b"h\x00"))
        data += b"0" + name("torch.nn", "Module") + b")\x81" + table((text("_modules"), children)) + b"bq\x00"
    return data + STOP


def wide(kind: str, count: int) -> bytes:
    """Return three levels of modules that all have one and the same wide table."""
    held = module() if kind == "_modules" else tensor(storage("0", 4), (4,), (1,))
    data = held + b"q\x000" + table(*((text(str(index)), b"h\x00") for index in range(count))) + b"q\x010"
    data += name("torch.nn", "Module") + b")\x81" + table((text(kind), b"h\x01")) + b"bq\x020"
    for _ in range(2):
        children = table(*((text(str(index)), b"h\x02") for index in range(count)))
        data += name("torch.nn", "Module") + b")\x81" + table((text("_modules"), children)) + b"bq\x020"
    return data + b"h\x02" + STOP


def by_many_names(held: bytes, count: int) -> bytes:
    """Return a state_dict that has one tensor many times."""
    return held + b"q\x000" + table(*((text(str(index)), b"h\x00") for index in range(count))) + STOP


OUTSIZED: dict[str, bytes] = {
    "memo index": b"Nr\xff\xff\xff\x7f" + STOP,
    "bytes of 2^62": b"\x8e" + struct.pack("<Q", 2**62) + b"x",
    "bytes of 2^31": b"B" + struct.pack("<I", 2**31) + b"x",
    "bytearray of 2^40": b"\x96" + struct.pack("<Q", 2**40) + b"x",
    "text of 2^40": b"\x8d" + struct.pack("<Q", 2**40) + b"x",
    "text of less than nothing": b"T" + struct.pack("<i", -5) + b"x",
    "frame of 2^63": b"\x95" + struct.pack("<Q", 2**63) + b"N" + STOP,
    "number of 2^31 bytes": b"\x8b" + struct.pack("<i", 2**31 - 1) + b"x",
    "number of a million digits": b"L" + b"9" * 10**6 + b"L\n" + STOP,
    "deep lists": b"]" * DEEP + b"a" * (DEEP - 1) + STOP,
    "deep tuples": b")" + b"\x85" * DEEP + STOP,
    "deep tuples as a key": b"})" + b"\x85" * DEEP + b"Ns" + STOP,
    "deep tuples in a set": b"\x8f()" + b"\x85" * DEEP + b"\x90" + STOP,
    "deep calls": name("a", "b") + b")R" * DEEP + STOP,
    "deep keys": name("a", "b") + b")R}\x86" * DEEP + STOP,
    "a name as long as the file": b"c" + b"a" * 10**6 + b"\nb\n" + STOP,
    "ten to the sixty lists": LAUGHS,
    "two to the hundred modules": twofold(100),
    "a module within itself": CYCLE,
    "nothing on the stack": b"R" + STOP,
    "too much on the stack": b"NN" + STOP,
    "a memo that was never filled": b"h\x07" + STOP,
    "a list as a key": b"}]Ns" + STOP,
    "attributes of a class": name("torch.nn", "Module") + b"}b" + STOP,
    "a buffer from outside": b"\x97" + STOP,
    "a persistent text": b"Pos.system\n" + STOP,
    "a persistent call": b"(" + text("module") + text("os.system") + b"tQ" + STOP,
    # What is written once and used by every opcode
    "a list copied to sets": again(b"(" + numbers(100_000) + b"l\x85", name("builtins", "set") + b"h\x00R", 1000),
    "a list copied to dicts": again(
        b"(" + b"".join(number(index) + b"N\x86" for index in range(50_000)) + b"l\x85",
        name("collections", "OrderedDict") + b"h\x00R",
        2000,
    ),
    "a long tuple as a key": again(b"(" + numbers(100_000) + b"t", b"}h\x00Ns", 50_000),
    "a long tuple in sets": again(b"(" + numbers(100_000) + b"t", b"(h\x00\x91", 50_000),
    "a long text looked up among its equals": (
        text("a" * 10**6) + b"q\x000" + text("a" * 10**6) + b"q\x010}(" + b"h\x00Nh\x01N" * 100_000 + b"u" + STOP
    ),
    "a long shape": again(
        b"(" + numbers(100_000) + b"t",
        called(name("torch._utils", "_rebuild_tensor"), storage("0", 4), number(0), b"h\x00", b"h\x00"),
        10_000,
    ),
    "a long reference": again(
        b"("
        + text("storage")
        + name("torch", "FloatStorage")
        + text("0")
        + text("cpu")
        + number(4)
        + b"N" * 100_000
        + b"t",
        b"h\x00Q",
        50_000,
    ),
    "long names": again(text(ASTRAL * 501), b"h\x00h\x00\x93", 300_000),
    "numbers that collide as keys": b"}(" + multiples(50_000, b"N") + b"u" + STOP,
    "numbers that collide as keys one by one": b"}" + multiples(50_000, b"Ns") + STOP,
    "numbers that collide in a set": b"\x8f(" + multiples(50_000) + b"\x90" + STOP,
    "numbers that collide in a frozen set": b"(" + multiples(50_000) + b"\x91" + STOP,
    "numbers that collide in tuples": b"}(" + multiples(50_000, b"\x85N") + b"u" + STOP,
    "numbers that collide in the memo": b"N" + b"r\x00\x00\xff\x7f" + STOP,
    "a long storage key": weights(tensor(storage("\x1b" * 10**6, 4), (4,), (1,))),
    "long keys of nothing": table(*((text("\x1b" * 4000 + str(index)), b"N") for index in range(20))) + STOP,
    "tuples of tuples as the class of a network": network_of(b")" + b"2\x86" * 36),
    "deep tuples as the class of a network": network_of(b")" + b"\x85" * DEEP),
    "a long key in two to the fifteen modules": twofold_of("k" * 100_000, 15),
    "a key of some length in two to the fifteen modules": twofold_of("k" * 4000, 15),
    "a short key in two to the twenty modules": twofold(19),
    "one table of modules in many modules": wide("_modules", 2000),
    "one table of tensors in many modules": wide("_parameters", 2000),
    "one tensor by many names": by_many_names(tensor(storage("0", 4), (1,), (1,)), 150_000),
    "an empty tensor by many names": by_many_names(tensor(storage("0", 4), (0,), (1,)), 150_000),
    "an empty tensor of an endless shape": weights(tensor(storage("0", 4), (0, 2**46, 2**46), (1, 1, 1))),
    "an empty tensor of many rows": weights(tensor(storage("0", 4), (2**24,) * 4 + (0,), (1,) * 5)),
}
COPIES = [
    "a list copied to sets",
    "a list copied to dicts",
    "numbers that collide as keys",
    "numbers that collide as keys one by one",
    "numbers that collide in a set",
    "numbers that collide in a frozen set",
    "numbers that collide in tuples",
]
ENDLESS = [
    "two to the hundred modules",
    "a module within itself",
    "a key of some length in two to the fifteen modules",
    "a short key in two to the twenty modules",
    "one table of modules in many modules",
    "one table of tensors in many modules",
    "one tensor by many names",
    "an empty tensor by many names",
]
# The same bytes as old files, in which the list of storages is a pickle of its own.
STREAMS: dict[str, bytes] = {
    "a long key in the list of storages": streamed(b"\x80\x02N.", {"\x1b" * 10**6: b""}),
    "many keys in the list of storages": streamed(b"\x80\x02N.", {str(index): b"" for index in range(1000)}),
    "a long preface": streamed(b"").replace(pickle.dumps(1001, 2), b"\x80\x02" + b"N0" * 10**5 + b"N."),
}


def headed(header: bytes, numbers_: bytes = b"") -> bytes:
    """Return a file of safetensors."""
    return struct.pack("<Q", len(header)) + header + numbers_


def claimed(numbers_: bytes, /, **shapes: list[int]) -> bytes:
    """Return a file of safetensors that has the same four bytes, or none, in every tensor."""
    each = {key: {"dtype": "F32", "shape": shape, "data_offsets": [0, len(numbers_)]} for key, shape in shapes.items()}
    return headed(json.dumps(each).encode(), numbers_)


HEADERS: dict[str, bytes] = {
    "header longer than its file": struct.pack("<Q", 2**20) + b"{",
    "header of 2^63 bytes": struct.pack("<Q", 2**63) + b"{",
    "header of 20 MB": headed(b'{"__metadata__":{"a":"' + b"a" * 20 * 2**20 + b'"}}'),
    "header of nothing": headed(b"{}"),
    "header without an end": headed(b'{"a":' * DEEP),
    "header of lists in lists": headed(b'{"a":' + b"[" * DEEP + b"]" * DEEP + b"}"),
    "header with many axes": claimed(bytes(4), a=[1] * 100_000),
    "header with an empty tensor of an endless shape": claimed(b"", a=[0, 2**46, 2**46]),
    "header with more than any number": claimed(b"", a=[0, 2**63]),
    "header with a product beyond any number": claimed(bytes(4), a=[2**40, 2**40]),
    "header with tensors over each other": claimed(bytes(4), a=[1], b=[1]),
    "header with less than nothing": claimed(bytes(4), a=[-1]),
    "header with 100,001 empty tensors": claimed(b"", **{f"w{index}": [0] for index in range(100_001)}),
    "header with an unknown type": headed(b'{"a":{"dtype":"F8_E4M3","shape":[1],"data_offsets":[0,1]}}', bytes(1)),
}
# Reads every file of a folder, with memory for no more than the reader may take.
READER = f"""
import json, resource, sys
from pathlib import Path
from detloom.foreign import read_checkpoint
held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + {MEMORY},) * 2)
for path in sorted(Path(sys.argv[1]).glob("*.pt")):
    try:
        read_checkpoint(path)
        said = "it was read"
    except BaseException as error:
        said = f"{{type(error).__name__}}: {{error}}"
    print(json.dumps(said[:5000]), flush=True)
"""
TENSORS: dict[str, bytes] = {
    "huge shape": weights(tensor(storage("0", 4), (2**40,), (1,))),
    "shape beyond any number": weights(tensor(storage("0", 4), (2**200,), (1,))),
    "one number many times": weights(tensor(storage("0", 4), (10**6, 10**6), (0, 0))),
    "beyond the end": weights(tensor(storage("0", 4), (2,), (1,), offset=3)),
    "before the beginning": weights(tensor(storage("0", 4), (2,), (1,), offset=-1)),
    "backwards": weights(tensor(storage("0", 4), (2,), (-1,))),
    "more strides than axes": weights(tensor(storage("0", 4), (2,), (1, 1))),
    "a hundred axes": weights(tensor(storage("0", 4), (1,) * 100, (1,) * 100)),
    "storage longer than its bytes": weights(tensor(storage("0", 2**40), (2**40,), (1,))),
    "storage that is missing": weights(tensor(storage("1", 4), (4,), (1,))),
    "storage by a path": weights(tensor(storage("../../byteorder", 1, "ByteStorage"), (1,), (1,))),
    "storage of an unknown kind": weights(tensor(storage("0", 4, "QInt8Storage"), (4,), (1,))),
    "storage that is no storage": weights(tensor(number(4), (4,), (1,))),
    "storage of less than nothing": weights(tensor(storage("0", -4), (4,), (1,))),
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return what another process says of each file, which has little memory to say it in."""
    folder = tmp_path_factory.mktemp("outsized")
    cases = {**{case: zipped(data, FOUR) for case, data in OUTSIZED.items()}, **STREAMS, **HEADERS}
    for index, data in enumerate(cases.values()):
        (folder / f"{index:03}.pt").write_bytes(data)
    with (folder / "answers").open("w") as out, suppress(subprocess.TimeoutExpired):
        subprocess.run([sys.executable, "-c", READER, str(folder)], stdout=out, check=False, timeout=300)
    said = [json.loads(line) for line in (folder / "answers").read_text().splitlines()]
    return dict(zip(cases, said, strict=False))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems limit a process's memory otherwise, or not at all")
@pytest.mark.parametrize("case", [*OUTSIZED, *STREAMS, *HEADERS])
def test_what_is_outsized_or_broken_is_refused_in_bounded_memory(case: str, answers: dict[str, str]) -> None:
    assert case in answers, "it, or one before it, ended the process or was not done with in time"
    assert answers[case].startswith("ArtifactError: ")
    assert len(answers[case]) < 2000


def test_what_is_outsized_is_told_apart_from_what_is_large(answers: dict[str, str]) -> None:
    copies = [case for case, answer in answers.items() if "more than 1,000,000 opcodes, those included that" in answer]
    endless = [case for case, answer in answers.items() if "has parts or names without end" in answer]

    assert copies == COPIES
    assert endless == ENDLESS


def test_large_but_sound_values_are_read(tmp_path: Path) -> None:
    """As trainings of thousands of parameters keep them: by number, by address, in sets, in lists."""
    layers = {f"backbone.stages.{index}.convolution.weight": torch.zeros(1) for index in range(5000)}
    addresses = {140_000_000_000_000 + 48 * index: {"step": index} for index in range(5000)}
    names = dict(enumerate(f"thing {index}" for index in range(20_000)))
    extra = {"set": set(range(20_000)), "pairs": OrderedDict((index, index) for index in range(20_000))}
    path = tmp_path / "large.pt"
    torch.save({"optimizer": {"state": addresses}, "names": names, "extra": extra, "state_dict": layers}, path)

    assert len(read_checkpoint(path).tensors) == 5000


REPEATED: dict[str, bytes] = {"lists": b"]", "sets": b"\x8f", "marks": b"("}


@pytest.mark.slow
@pytest.mark.parametrize("case", REPEATED)
@pytest.mark.parametrize("wrap", WRAPS)
def test_values_without_end_are_refused_in_bounded_memory(case: str, wrap: str, tmp_path: Path) -> None:
    data = WRAPS[wrap](REPEATED[case] * 2_000_000)

    tracemalloc.start()
    complaint = refused(data, tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert "more than 1,000,000 opcodes" in complaint
    assert peak < MEMORY


@pytest.mark.parametrize("wrap", [zipped, streamed])
@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_are_not_in_the_file_are_refused(case: str, wrap: Callable[..., bytes], tmp_path: Path) -> None:
    data = wrap(TENSORS[case], FOUR)

    tracemalloc.start()
    refused(data, tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < MEMORY


def test_many_tensors_over_one_storage_are_refused(tmp_path: Path) -> None:
    content = bytes(2**20)
    data = weights(*(tensor(storage("0", 2**18), (2**18,), (1,)) for _ in range(1000)))

    assert "lie over each other" in refused(zipped(data, {"0": content}), tmp_path)


def zip_of(**contents: bytes) -> bytes:
    file = BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for each, content in contents.items():
            archive.writestr(each, content)
    return file.getvalue()


def twice() -> bytes:
    file = BytesIO()
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(file, "w") as archive:
        for _ in range(2):
            archive.writestr("archive/data.pkl", b"N.")
    return file.getvalue()


def directory_of(size: int) -> bytes:
    """Return a zip file whose directory claims a size."""
    data = bytearray(zipped(b"N."))
    end = data.rfind(b"PK\x05\x06")
    data[end + 12 : end + 16] = struct.pack("<I", size)
    return bytes(data)


def big_directory() -> bytes:
    """Return a zip file with a directory of 100,000 names."""
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 1000, 1000, 5 * 2**20, 4, 0)
    return b"PK\x03\x04" + bytes(5 * 2**20) + end


def directory_of_no_number() -> bytes:
    """Return a zip file of the larger kind whose directory claims sizes that no machine counts to."""
    large = struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, 2**64 - 1, 2**64 - 1)
    place = struct.pack("<4sIQI", b"PK\x06\x07", 0, 64, 1)
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 2**16 - 1, 2**16 - 1, 2**32 - 1, 2**32 - 1, 0)
    return b"PK\x03\x04" + bytes(60) + large + place + end


def encrypted() -> bytes:
    data = bytearray(zipped(b"N."))
    start = data.find(b"PK\x01\x02")
    data[start + 8] |= 1
    return bytes(data)


ZIPS: dict[str, tuple[Callable[[], bytes], str]] = {
    "bomb": (lambda: BOMB, "compressed|lie over"),
    "directory of 4 GB": (lambda: directory_of(2**32 - 2), "no whole zip file"),
    "directory of 2^64 bytes": (directory_of_no_number, "no whole zip file"),
    "name of 60,000 letters": (lambda: zip_of(**{"a" * 60_000 + "/data.pkl": b"N."}), "lie over each other"),
    "directory of 5 MB": (big_directory, "its directory claims more than"),
    "two entries of a name": (twice, "lie over each other"),
    "no pickle": (lambda: zip_of(**{"archive/other": b""}), "no data.pkl"),
    "two pickles": (lambda: zip_of(**{"a/data.pkl": b"N.", "b/data.pkl": b"N."}), "no data.pkl"),
    "pickle outside of its folder": (lambda: zip_of(**{"../../data.pkl": b"N."}), "no data.pkl"),
    "program": (lambda: zip_of(**{"a/data.pkl": b"N.", "a/constants.pkl": b"N."}), "TorchScript program"),
    "big-endian": (lambda: zip_of(**{"a/data.pkl": b"N.", "a/byteorder": b"big"}), "big-endian"),
    "changed byte": (lambda: zipped(b"N.").replace(b"N.", b"O.", 1), "damaged"),
    "encrypted": (encrypted, "compressed or encrypted"),
}


@pytest.mark.parametrize("case", ZIPS)
def test_zip_files_that_torch_does_not_write_are_refused(case: str, tmp_path: Path) -> None:
    build, complaint = ZIPS[case]
    data = build()

    tracemalloc.start()
    message = refused(data, tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert any(each in message for each in complaint.split("|"))
    assert peak < 32 * 2**20


OTHERS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "page": (b"<!DOCTYPE html><html>", "fetched whole, and not its page"),
    "beginning of a zip file": (b"PK\x03\x04", "no whole zip file"),
    "plain pickle": (pickle.dumps([1, 2]), "none that torch.save wrote"),
    "no network": (zipped(pickle.dumps({"epoch": 3}, 2)), "no network was found in this file; it holds epoch"),
    "number": (zipped(pickle.dumps(3, 2)), "it holds int"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_files_of_another_kind_are_told_apart(case: str, tmp_path: Path) -> None:
    content, complaint = OTHERS[case]

    assert complaint in refused(content, tmp_path)


def test_a_file_that_is_not_there_is_said_to_be(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_checkpoint(tmp_path / "absent.pt")


def test_the_documents_count_the_hostile_files() -> None:
    """Each is refused in a test above, and those of the first row are proved to leave no mark."""
    tried = {
        "programs": len(EXECUTED) * len(WRAPS),
        "outsized": len(OUTSIZED) + len(STREAMS) + len(REPEATED) * len(WRAPS),
        "tensors": len(TENSORS) * 2 + 1,
        "zip": len(ZIPS),
        "safetensors": len(HEADERS),
        "cut short": CUTS * 2,
        "another kind": len(OTHERS),
    }
    documented = Path(__file__).parents[2] / "docs" / "checkpoints.md"

    section = documented.read_text(encoding="utf-8").partition("hostile or broken files")[2].partition("\n\n##")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")][1:]

    assert [int(count) for _, count, *_ in rows] == [*tried.values(), sum(tried.values())]
    assert all(word in kind for word, (kind, *_) in zip(tried, rows, strict=False))
    assert all(row[2:] == [row[1], "0"] for row in rows)


class Net(nn.Module):
    """Has a bit of everything that networks have."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4, eps=1e-3)
        self.empty = nn.Sequential(nn.SiLU(), nn.Identity())
        self.register_buffer("kept", torch.arange(3))
        self.register_buffer("dropped", torch.ones(2), persistent=False)
        self.register_parameter("absent", None)
        self.names = ["cat", "dog"]
        self.odd = {
            "set": {1, 2},
            "array": np.arange(3),
            "size": torch.Size([1, 2]),
            "path": Path("a"),
            "dtype": torch.int8,
        }


@pytest.fixture(params=[True, False], ids=["zip", "stream"])
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[object], Path]:
    """Return a function that saves in either form."""

    def save(value: object) -> Path:
        path = tmp_path / "saved.pt"
        with warnings.catch_warnings(action="ignore"):
            torch.save(value, path, _use_new_zipfile_serialization=request.param)
        return path

    return save


def test_a_whole_network_is_read_as_its_state_dict(saved: Callable[[object], Path]) -> None:
    net = Net()

    checkpoint = read_checkpoint(saved({"epoch": 1, "model": net}))

    assert checkpoint.part == "model"
    assert checkpoint.tensors.keys() == net.state_dict().keys()
    assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in checkpoint.tensors.items())
    assert checkpoint.modules["bn"].kind == "torch.nn.modules.batchnorm.BatchNorm2d"
    assert checkpoint.modules["bn"].attributes["eps"] == 1e-3
    assert checkpoint.modules[""].attributes["names"] == ["cat", "dog"]


@pytest.mark.parametrize(
    "dtype", ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"]
)
def test_tensors_of_every_type_are_read(dtype: str, saved: Callable[[object], Path]) -> None:
    given_tensor = torch.arange(12).reshape(3, 4).to(getattr(torch, dtype))

    found = read_checkpoint(saved({"w": given_tensor.clone()})).tensors["w"]

    expected = given_tensor.float() if dtype in ("float16", "bfloat16") else given_tensor
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)


def test_tensors_in_another_order_of_memory_are_read(saved: Callable[[object], Path]) -> None:
    value = torch.rand(2, 3, 4, 5)
    state = {
        "nhwc": value.to(memory_format=torch.channels_last),
        "turned": value.transpose(0, 3),
        "none": torch.empty(0, 3),
    }

    found = read_checkpoint(saved(state)).tensors

    assert torch.equal(found["nhwc"], value)
    assert torch.equal(found["turned"], value.transpose(0, 3))
    assert found["none"].shape == (0, 3)


def test_tensors_that_share_memory_are_read(saved: Callable[[object], Path]) -> None:
    value = torch.rand(3)

    found = read_checkpoint(saved({"a": value, "b": value, "c": torch.rand(9)})).tensors

    assert torch.equal(found["a"], found["b"])


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_binary_protocol_is_read(protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "saved.pt"
    torch.save(Net(), path, pickle_protocol=protocol)

    assert read_checkpoint(path).tensors.keys() == Net().state_dict().keys()


def test_a_file_cut_short_anywhere_is_refused(saved: Callable[[object], Path], tmp_path: Path) -> None:
    whole = saved(Net()).read_bytes()

    for part in range(CUTS):
        refused(whole[: len(whole) * part // CUTS], tmp_path)


def mutated(content: bytes, data: st.DataObject) -> bytes:
    """Return bytes of which some were changed, cut out or put in twice."""
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(changed) - 1))
        match data.draw(st.sampled_from(["byte", "opcode", "cut", "repeat"])):
            case "byte":
                changed[at] = data.draw(st.integers(0, 255))
            case "opcode":
                changed[at] = data.draw(st.sampled_from(b"()}]{0RbcqhjQt.uesaNKJ\x80\x81\x82\x93\x8a\x8c\x94\x95"))
            case "cut":
                del changed[at : at + data.draw(st.integers(1, 20))]
            case "repeat":
                changed[at:at] = changed[at : at + data.draw(st.integers(1, 20))]
    return bytes(changed)


def read_or_complain(content: bytes, folder: Path) -> None:
    path = folder / "mutated.pt"
    path.write_bytes(content)
    try:
        read_checkpoint(path)
    except ArtifactError as error:
        assert str(path) in str(error)  # noqa: PT017 - damage may hit what is not read, so that nothing is raised


def whole_files() -> tuple[bytes, bytes]:
    """Return the same small network in both forms."""
    forms = []
    for is_zip in (True, False):
        file = BytesIO()
        with warnings.catch_warnings(action="ignore"):
            torch.save({"model": Net(), "epoch": 1}, file, _use_new_zipfile_serialization=is_zip)
        forms.append(file.getvalue())
    return forms[0], forms[1]


ZIP_FILE, STREAM_FILE = whole_files()
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(data=st.data())
@FUZZ
def test_damage_to_a_zip_file_gives_a_complaint_or_nothing(data: st.DataObject, tmp_path: Path) -> None:
    read_or_complain(mutated(ZIP_FILE, data), tmp_path)


@given(data=st.data())
@FUZZ
def test_damage_to_a_stream_gives_a_complaint_or_nothing(data: st.DataObject, tmp_path: Path) -> None:
    read_or_complain(mutated(STREAM_FILE, data), tmp_path)


@given(data=st.data())
@FUZZ
def test_damage_under_a_right_checksum_gives_a_complaint_or_nothing(data: st.DataObject, tmp_path: Path) -> None:
    with zipfile.ZipFile(BytesIO(ZIP_FILE)) as archive:
        entries = {each: archive.read(each) for each in archive.namelist()}
    pickled = next(each for each in entries if each.endswith("data.pkl"))

    read_or_complain(zip_of(**{**entries, pickled: mutated(entries[pickled], data)}), tmp_path)
