"""Descriptions that can be believed: of the right form, and at one with themselves."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NotRequired, cast, get_args, get_origin, get_type_hints, is_typeddict

from detloom.decode_spec import DecodeSpec, maps_of
from detloom.errors import ExportError, reason, suggest
from detloom.host_spec import HostSpec
from detloom.wording import in_words, shown

__all__ = ["check_host_spec", "read_host_spec"]

# Hosts count in 32 bits and reckon in float32.
LARGEST_INT = 2**31 - 1
LARGEST_FLOAT = 3.4e38

# Channels of a prior that the words of a box are about.
CHANNELS = {"center": 2, "size": 2, "objectness": 1}


def read_host_spec(path: Path) -> HostSpec:
    """Return the description in a ``NAME.host.json``.

    Raises:
        ExportError: There is no such file, or it is damaged; every fault is named.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ExportError(
            f"{path}: this description cannot be read: {reason(error)}. Export the detector anew."
        ) from error
    return check_host_spec(found, str(path), "Export the detector anew.")


def check_host_spec(found: object, where: str, advice: str) -> HostSpec:
    """Return a description if every host can follow it.

    Args:
        found: Plain JSON data.
        where: What it is of, put before the complaints.
        advice: What to do about them.

    Raises:
        ExportError: It cannot be followed; every fault is named.
    """
    complaints = list(_misfits(HostSpec, found, ""))
    spec = cast("HostSpec", found)
    if not complaints:
        complaints = list(_contradictions(spec))
    if complaints:
        lines = "\n".join(f"  {complaint}" for complaint in complaints)
        raise ExportError(f"{where}: no host can follow this description\n{lines}\n  {advice}")
    return spec


def _misfits(hint: Any, value: object, path: str) -> Iterator[str]:
    """Yield what of a value is not of its type."""
    if get_origin(hint) is UnionType:
        forms = [each for each in get_args(hint) if each is not NoneType]
        if value is None and len(forms) < len(get_args(hint)):
            return
        # A table says by its form which one it is.
        form = value.get("form") if isinstance(value, Mapping) else None
        matching = [each for each in forms if is_typeddict(each) and form in get_args(get_type_hints(each)["form"])]
        if is_typeddict(forms[0]) and not matching:
            known = [text for each in forms for text in get_args(get_type_hints(each)["form"])]
            yield f"'{path}' must be a table with 'form', one of {', '.join(known)}"
            return
        hint = (matching or forms)[0]
    if is_typeddict(hint):
        yield from _table_misfits(hint, value, path)
    elif get_origin(hint) is list and isinstance(value, list):
        for index, each in enumerate(value):
            yield from _misfits(get_args(hint)[0], each, f"{path}.{index}")
    elif not _is(hint, value):
        yield f"'{path}' is {shown(value)}: it must be {in_words(hint)}"


def _table_misfits(hint: Any, value: object, path: str) -> Iterator[str]:
    if not isinstance(value, Mapping):
        yield f"'{path}' must be a table" if path else "it must be a table"
        return
    hints = get_type_hints(hint, include_extras=True)
    for key in sorted(value.keys() - hints.keys()):
        yield f"'{_at(path, key)}' is unknown.{suggest(key, hints)}"
    for key, inner in hints.items():
        is_optional = get_origin(inner) is NotRequired
        if key in value:
            yield from _misfits(get_args(inner)[0] if is_optional else inner, value[key], _at(path, key))
        elif not is_optional:
            yield f"'{_at(path, key)}' is missing"


def _is(hint: Any, value: object) -> bool:
    """Return whether a plain value is of a type; a whole number is a number, and true is none."""
    if isinstance(value, bool):
        return hint is bool
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if hint is int:
        return isinstance(value, int) and abs(value) <= LARGEST_INT
    if hint is float:
        # NaN is not below anything.
        return isinstance(value, int | float) and abs(value) <= LARGEST_FLOAT
    return isinstance(hint, type) and isinstance(value, hint)


def _at(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _contradictions(spec: HostSpec) -> Iterator[str]:
    """Yield what is of the right form and cannot be."""
    decode, selection = spec["decode"], spec["selection"]
    if len(spec["names"]) != decode["num_classes"]:
        yield f"'names' has {len(spec['names'])} entries for {decode['num_classes']} classes"
    for key, tensor in (("input", spec["input"]), *((f"tensors.{i}", each) for i, each in enumerate(spec["tensors"]))):
        is_real = tensor["dtype"].startswith("float")
        scale = tensor["scale"]
        if (scale is None) != is_real or (scale is not None and scale <= 0):
            yield f"'{key}.scale' is {shown(scale)} for {tensor['dtype']}: whole numbers have one above 0, others null"
    if min(spec["input"]["height"], spec["input"]["width"]) < 1:
        yield "'input' must have at least a row and a column"
    if not 0 <= spec["input"]["fill"] <= 255:
        yield f"'input.fill' is {spec['input']['fill']}: it must lie between 0 and 255"
    odd = [*_odd_outputs(decode), *_odd_levels(decode)]
    yield from odd or _odd_maps(spec)
    for key, share in (("score", selection["score"]), ("overlap", selection["overlap"])):
        if not 0 <= share <= 1:
            yield f"'selection.{key}' is {shown(share)}: it must lie between 0 and 1"
    for key, count in (("max_detections", selection["max_detections"]), ("candidates", selection["candidates"])):
        if count < 1:
            yield f"'selection.{key}' is {count}: it must be at least 1"


def _odd_outputs(decode: DecodeSpec) -> Iterator[str]:
    channels = {output["name"]: output["channels"] for output in decode["outputs"]}
    wanted = dict(CHANNELS, classes=decode["num_classes"])
    needed: list[str] = ["center", "size"]
    if decode["box"]["form"] == "distances":
        wanted["distances"] = 4 * decode["box"]["bins"]
        needed = ["distances"]
    if len(channels) < len(decode["outputs"]):
        yield "'decode.outputs' has a name twice"
    for name, count in channels.items():
        if count != wanted.get(name, count):
            yield f"output '{name}' has {count} channels, not {wanted[name]}"
        elif count < 1:
            yield f"output '{name}' has {count} channels: it must have at least 1"
    absent = [name for name in (*needed, *decode["score"]) if name not in channels]
    if absent:
        yield f"'decode.outputs' has no {' and no '.join(absent)}"
    if not decode["score"]:
        yield "'decode.score' is empty"
    elif "classes" not in decode["score"] and decode["num_classes"] != 1:
        yield f"'decode.score' must have 'classes' to tell {decode['num_classes']} classes apart"


def _odd_levels(decode: DecodeSpec) -> Iterator[str]:
    names = sorted(output["name"] for output in decode["outputs"])
    levels, held = decode["levels"], maps_of(decode)
    if not levels:
        yield "'decode.levels' is empty"
    for index, level in enumerate(levels):
        if not level["priors"] or any(len(pair) != 2 for pair in level["priors"]) or level["stride"] < 1:
            yield f"'decode.levels.{index}' must have a stride of at least 1, and priors, each [width, height]"
        on_level = sorted(name for each in held if each["level"] == index for name in each["outputs"])
        if on_level != names:
            yield f"the maps of level {index} hold {', '.join(on_level) or 'nothing'}, not each output once"
    for index, each in enumerate(held):
        if not 0 <= each["level"] < len(levels):
            yield f"'decode.maps.{index}.level' is {each['level']}: there are {len(levels)} levels"


def _odd_maps(spec: HostSpec) -> Iterator[str]:
    """Yield what is wrong between maps and tensors: their number, and their sizes."""
    decode = spec["decode"]
    channels = {output["name"]: output["channels"] for output in decode["outputs"]}
    held = maps_of(decode)
    if len(held) != len(spec["tensors"]):
        yield f"there are {len(spec['tensors'])} tensors for {len(held)} maps"
        return
    for index, (each, tensor) in enumerate(zip(held, spec["tensors"], strict=True)):
        level = decode["levels"][each["level"]]
        count = len(level["priors"]) * sum(channels[name] for name in each["outputs"])
        rows, columns = (-(-side // level["stride"]) for side in (spec["input"]["height"], spec["input"]["width"]))
        wanted = [count, rows, columns] if tensor["layout"] == "NCHW" else [rows, columns, count]
        if tensor["shape"][1:] != wanted:
            yield f"'tensors.{index}.shape' is {tensor['shape']}, not [batch, {', '.join(map(str, wanted))}]"
