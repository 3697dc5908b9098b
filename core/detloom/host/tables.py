"""The description of an exported file as C tables, to be compiled in beside ``detloom_host.c``."""

import re
from collections.abc import Iterator

import numpy as np

from detloom.decode_spec import OutputName, maps_of
from detloom.host_spec import HostSpec, InputSpec, TensorSpec

__all__ = ["c_tables", "identifier"]

# In the order of the struct.
PLACED: tuple[OutputName, ...] = ("center", "size", "distances", "objectness", "classes")


def identifier(name: str) -> str:
    """Return a file's name as one that programs can give: ``yolov7_tiny`` for ``yolov7-tiny``."""
    word = re.sub(r"\W", "_", name, flags=re.ASCII)
    return f"_{word}" if word[:1].isdigit() else word


def c_tables(name: str, spec: HostSpec) -> str:
    """Return the text of ``NAME_host.h``, which defines ``NAME_network``.

    Args:
        name: As ``identifier`` returns it.
        spec: A description that was checked.
    """
    decode = spec["decode"]
    guard = f"{name.upper()}_HOST_H"
    lines = [
        "/* Written by detloom beside an exported file: what `detloom_host.c` has to know of it. */",
        f"#ifndef {guard}",
        f"#define {guard}",
        "",
        "#include <float.h>",
        "",
        '#include "detloom_host.h"',
        "",
        f"static const char *const {name}_names[] = {{{', '.join(_text(each) for each in spec['names'])}}};",
        "",
        f"static const detloom_tensor {name}_tensors[] = {{",
        *(f"    {_output(each)}, /* {_comment(each['name'])} */" for each in spec["tensors"]),
        "};",
        "",
        *(
            f"static const float {name}_priors_{index}[][2] = {{{', '.join(_pair(pair) for pair in level['priors'])}}};"
            for index, level in enumerate(decode["levels"])
        ),
        "",
        f"static const detloom_level {name}_levels[] = {{",
        *_levels(name, spec),
        "};",
        "",
        f"static const detloom_network {name}_network = {{",
        *(f"    .{field} = {value}," for field, value in _network(name, spec).items()),
        "};",
        "",
        "#endif",
    ]
    return "\n".join(lines) + "\n"


def _network(name: str, spec: HostSpec) -> dict[str, str]:
    decode, box, selection = spec["decode"], spec["decode"]["box"], spec["selection"]
    fields = {
        "names": f"{name}_names",
        "num_classes": str(decode["num_classes"]),
        "input": _tensor(spec["input"], spec["input"]["height"], spec["input"]["width"], 3),
        "fill": str(spec["input"]["fill"]),
        "num_tensors": str(len(spec["tensors"])),
        "tensors": f"{name}_tensors",
        "num_levels": str(len(decode["levels"])),
        "levels": f"{name}_levels",
    }
    if box["form"] == "distances":
        fields |= {"form": "DETLOOM_DISTANCES", "bins": str(box["bins"])}
    else:
        center, size = box["center"], box["size"]
        fields |= {
            "form": "DETLOOM_CENTER_AND_SIZE",
            "center_activation": f"DETLOOM_{center['activation'].upper()}",
            "center_scale": _real(center["scale"]),
            "center_shift": _real(center["shift"]),
            "size_activation": f"DETLOOM_{size['activation'].upper()}",
            "size_limit": "FLT_MAX" if size["limit"] is None else _real(size["limit"]),
            "size_scale": _real(size["scale"]),
            "size_exponent": _real(size["exponent"]),
            "size_in_priors": str(int(size["unit"] == "prior")),
        }
    kept = (
        _real(selection["score"]),
        # A double, as IoUs are.
        repr(float(selection["overlap"])),
        str(selection["max_detections"]),
        str(selection["candidates"]),
        str(int(selection["agnostic"])),
    )
    return fields | {
        "score_has_objectness": str(int("objectness" in decode["score"])),
        "score_has_classes": str(int("classes" in decode["score"])),
        "has_suppression": str(int(decode["suppression"])),
        "selection": f"{{{', '.join(kept)}}}",
    }


def _levels(name: str, spec: HostSpec) -> Iterator[str]:
    """Yield each level: its stride and priors, and the tensor and channels of each output."""
    decode = spec["decode"]
    channels = {output["name"]: output["channels"] for output in decode["outputs"]}
    for index, level in enumerate(decode["levels"]):
        places = dict.fromkeys(PLACED, (-1, 0, 0))
        for tensor, held in enumerate(maps_of(decode)):
            step = sum(channels[output] for output in held["outputs"])
            first = 0
            for output in held["outputs"]:
                if held["level"] == index:
                    places[output] = (tensor, first, step)
                first += channels[output]
        fields = [str(level["stride"]), str(len(level["priors"])), f"{name}_priors_{index}"]
        fields += [f"{{{', '.join(map(str, place))}}}" for place in places.values()]
        yield f"    {{{', '.join(fields)}}},"


def _output(tensor: TensorSpec) -> str:
    _, *sizes = tensor["shape"]
    height, width, channels = sizes if tensor["layout"] == "NHWC" else (*sizes[1:], sizes[0])
    return _tensor(tensor, height, width, channels)


def _tensor(tensor: InputSpec | TensorSpec, height: int, width: int, channels: int) -> str:
    scale = "0" if tensor["scale"] is None else _real(tensor["scale"])
    fields = (int(tensor["layout"] == "NHWC"), height, width, channels, scale, tensor["zero_point"])
    return f"{{DETLOOM_{tensor['dtype'].upper()}, {', '.join(map(str, fields))}}}"


def _pair(pair: list[float]) -> str:
    return f"{{{_real(pair[0])}, {_real(pair[1])}}}"


def _real(number: float) -> str:
    """Return a number that C reads as the nearest float."""
    return f"{float(np.float32(number))!r}f"


def _text(text: str) -> str:
    """Return text as C writes it, in UTF-8; a question mark may begin a trigraph."""
    plain = "".join(
        chr(byte) if 32 <= byte < 127 and chr(byte) not in '"\\?' else f"\\{byte:03o}"
        for byte in text.encode(errors="replace")
    )
    return f'"{plain}"'


def _comment(text: str) -> str:
    return re.sub(r"[^\w.:/-]|\*/|/\*", "_", text, flags=re.ASCII)
