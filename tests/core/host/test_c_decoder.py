"""The C decoder against the numpy one: the same boxes, within the rounding of float32."""

import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from host_cases import HEADS, INPUT, NUMBERS, borderline, description, host, outputs, random_maps, split
from numpy.typing import NDArray

from detloom.decode_spec import DecodeSpec
from detloom.host import write_host_files
from detloom.host.decoder import decoded
from detloom.host_spec import HostSpec

COMPILER = shutil.which("gcc") or shutil.which("cc")
STRICT = ("-std=c99", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-pedantic", "-O1")
REQUEST = np.dtype(
    {
        "names": [
            *("overlap", "score", "max_detections", "candidates", "is_agnostic"),
            *("is_own", "capacity", "height", "width"),
        ],
        "formats": ["f8", "f4", *["i4"] * 7],
    },
    align=True,
)
BOX = np.dtype([("box", "f4", 4), ("score", "f4"), ("label", "i4"), ("prior", "i4")])
ALL = {"score": 0.0, "overlap": 1.0, "max_detections": 10**6, "candidates": 10**6, "capacity": 4000}

SANITIZED = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")

pytestmark = pytest.mark.skipif(COMPILER is None, reason="there is no C compiler here")

Outputs = Mapping[str, NDArray[Any]]


class Case(NamedTuple):
    """Outputs of a file, and what is asked about them."""

    outputs: Outputs
    asked: Mapping[str, Any]


Run = Callable[[Sequence[Case]], list[NDArray[Any]]]
Compile = Callable[..., Path]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[tuple[str, ...]], Path]:
    """Return what compiles the decoder itself, strictly and once with the same flags."""

    @cache
    def build(flags: tuple[str, ...]) -> Path:
        folder = tmp_path_factory.mktemp("decoder")
        compile_in(folder, "-c", str(files("detloom.host") / "detloom_host.c"), *flags)
        return folder / "detloom_host.o"

    return build


@pytest.fixture
def compiled(built: Callable[[tuple[str, ...]], Path], tmp_path: Path) -> Compile:
    """Return what compiles a program for the file of a description."""

    def build(spec: HostSpec, *flags: str) -> Path:
        write_host_files(tmp_path, "some-net", spec)
        source = Path(__file__).with_name("drive.c")
        defines = ('-DTABLES="some_net_host.h"', "-DNETWORK=some_net_network", "-I.")
        compile_in(tmp_path, *flags, *defines, str(source), str(built(flags)), "-o", "drive", "-lm")
        return tmp_path / "drive"

    return build


def compile_in(folder: Path, *words: str) -> None:
    command = [str(COMPILER), *STRICT, *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def run(program: Path, *words: str, given: bytes = b"") -> bytes:
    done = subprocess.run([program, *words], input=given, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def detect(program: Path, cases: Sequence[Case]) -> list[NDArray[Any]]:
    """Return the boxes of each case."""
    given = bytearray()
    for case in cases:
        request = np.zeros(1, REQUEST)
        for key, value in case.asked.items():
            request[key] = value
        given += request.tobytes() + b"".join(each.tobytes() for each in case.outputs.values())
    written = run(program, "detect", given=bytes(given))
    found, start = [], 0
    for _ in cases:
        count = int.from_bytes(written[start : start + 4], "little")
        found.append(np.frombuffer(written, BOX, count, start + 4))
        start += 4 + count * BOX.itemsize
    assert start == len(written)
    return found


def assert_decodes_as_numpy(program: Path, spec: HostSpec, seed: int) -> None:
    named = outputs(spec, random_maps(spec["decode"], seed))
    boxes_P4, scores_PC = decoded(spec["decode"], host(spec).maps(named))

    (found,) = detect(program, [Case(named, ALL)])

    found = np.sort(found, order="prior")
    assert found["prior"].tolist() == list(range(len(boxes_P4)))
    np.testing.assert_allclose(found["box"], boxes_P4, rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(found["score"], scores_PC.max(1), rtol=0, atol=1e-6)
    # Products of equal scores in float32 may hide which class's logit was the larger.
    chosen_P = np.take_along_axis(scores_PC, found["label"][:, None].astype(int), 1)[:, 0]
    np.testing.assert_allclose(chosen_P, scores_PC.max(1), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "layout", "is_split"),
    [("float32", "NCHW", False), ("int8", "NHWC", False), ("int8", "NHWC", True)],
    ids=["real", "whole", "split"],
)
@pytest.mark.parametrize("name", HEADS)
def test_every_head_is_decoded(compiled: Compile, name: str, dtype: Any, layout: Any, is_split: bool) -> None:
    decode = HEADS[name]().decode_spec()
    spec = description(split(decode) if is_split else decode, dtype=dtype, layout=layout)

    assert_decodes_as_numpy(compiled(spec), spec, seed=1)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float16"])
def test_every_type_and_layout_is_read(compiled: Compile, dtype: Any, layout: Any) -> None:
    spec = description(HEADS["anchor"]().decode_spec(), dtype=dtype, layout=layout)

    assert_decodes_as_numpy(compiled(spec), spec, seed=2)


def test_halves_are_read_down_to_the_smallest_and_beyond_numbers(compiled: Compile) -> None:
    decode = HEADS["anchor-free"]().decode_spec()
    spec = description(decode, dtype="float16")
    named = outputs(spec, random_maps(decode, 3))
    odd = np.array([2**-24, 3 * 2**-24, -(2**-14), 0.0, 7.5, -9.25], np.float16)
    named["map0"][0, :2].flat[: len(odd)] = odd
    # None of three priors is anything: for its centre, its size, and a class.
    named["map0"][0, 0, 7, 11], named["map0"][0, 2, 7, 10], named["map0"][0, 5, 7, 9] = np.inf, np.nan, np.nan
    boxes_P4, _ = decoded(spec["decode"], host(spec).maps(named))

    (found,) = detect(compiled(spec), [Case(named, ALL)])

    found = np.sort(found, order="prior")
    assert found["prior"].tolist() == [prior for prior in range(len(boxes_P4)) if prior not in (93, 94, 95)]
    np.testing.assert_allclose(found["box"], boxes_P4[found["prior"]], rtol=1e-5, atol=1e-3)


def is_clear(boxes_P4: NDArray[Any], scores_P: NDArray[Any], asked: Mapping[str, Any]) -> bool:
    """Return whether no choice hangs on the last bits: scores are equal or apart, and overlaps off their limit."""
    gaps = np.diff(np.sort(np.append(scores_P, asked["score"])))
    low, high = boxes_P4[:, None, :2].astype(float), boxes_P4[:, None, 2:].astype(float)
    common = np.maximum(np.minimum(high, high.swapaxes(0, 1)) - np.maximum(low, low.swapaxes(0, 1)), 0).prod(2)
    area = (high - low).prod(2)
    iou = common / np.maximum(area + area.T - common, 1e-9)
    return bool(((gaps == 0) | (gaps > 1e-6)).all() and (np.abs(iou - asked["overlap"]) > 1e-4).all())


@pytest.mark.parametrize(
    ("name", "dtype", "flags"),
    [
        ("anchor-free without objectness", "int8", SANITIZED),
        ("anchor-free without objectness", "float32", ()),
        ("distribution", "int8", ()),
        ("one-to-one", "float32", SANITIZED),
    ],
)
def test_the_same_boxes_are_kept_in_the_same_order(
    compiled: Compile, name: str, dtype: Any, flags: tuple[str, ...]
) -> None:
    spec = description(split(HEADS[name]().decode_spec()), dtype=dtype, layout="NHWC")
    cases, wanted = [], []
    for seed in range(40):
        random = np.random.default_rng(seed)
        asked = {
            "score": np.float32(random.choice([0.85, 0.95])),
            "overlap": random.choice([0.05, 0.35, 0.61, 1.01]),
            "max_detections": random.choice([1, 4, 300]),
            "candidates": random.choice([1, 6, 300]),
            "is_agnostic": random.integers(2),
            "capacity": 300,
            "height": random.integers(20, 90),
            "width": random.integers(20, 90),
        }
        named = outputs(spec, random_maps(spec["decode"], seed))
        decoder = host(spec)
        boxes_P4, scores_PC = decoded(spec["decode"], decoder.maps(named))
        is_likely_P = scores_PC.max(1) > asked["score"] - 1e-6
        if is_clear(boxes_P4[is_likely_P], scores_PC.max(1)[is_likely_P], asked):
            decoder.selection.update(agnostic=bool(asked["is_agnostic"]))
            decoder.selection.update({key: asked[key] for key in ("score", "overlap", "max_detections", "candidates")})
            cases.append(Case(named, asked))
            wanted.append(decoder.detect(named, decoder.fit(int(asked["height"]), int(asked["width"]))))

    found = detect(compiled(spec, *flags), cases)

    assert len(cases) > 15
    assert sum(len(each) for each in found) > 100
    for case, (boxes_N4, scores_N, labels_N) in zip(found, wanted, strict=True):
        assert case["label"].tolist() == labels_N.tolist()
        np.testing.assert_allclose(case["box"], boxes_N4, rtol=1e-5, atol=1e-3)
        np.testing.assert_allclose(case["score"], scores_N, rtol=0, atol=1e-6)


@pytest.mark.parametrize("capacity", [0, 1, 10, 100])
def test_the_best_are_kept_where_there_is_room_for_fewer(compiled: Compile, capacity: int) -> None:
    spec = description(HEADS["distribution"]().decode_spec(), dtype="int8", layout="NHWC")
    named = outputs(spec, random_maps(spec["decode"], 5))
    _, scores_PC = decoded(spec["decode"], host(spec).maps(named))

    (found,) = detect(compiled(spec), [Case(named, {**ALL, "capacity": capacity})])

    # Of equal ones the first: many numbers of 8 bits are.
    best = np.argsort(-scores_PC.max(1), kind="stable")[:capacity]
    assert found["prior"].tolist() == best.tolist()


def test_the_networks_own_selection_is_the_descriptions(compiled: Compile) -> None:
    spec = description(HEADS["anchor"]().decode_spec(), score=0.6, overlap=0.3, max_detections=5, agnostic=True)
    named = outputs(spec, random_maps(spec["decode"], 6))
    boxes_N4, _, _ = host(spec).detect(named)

    (found,) = detect(compiled(spec), [Case(named, {"is_own": 1, "capacity": 500})])

    assert len(found) == 5
    np.testing.assert_allclose(found["box"], boxes_N4, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", NUMBERS)
def test_the_input_is_filled_as_numpy_fills_it(compiled: Compile, dtype: Any, layout: Any) -> None:
    spec = description(HEADS["anchor"]().decode_spec(), dtype=dtype, layout=layout)
    canvas_HW3 = np.random.default_rng(0).integers(0, 256, (*INPUT, 3), np.uint8)

    written = run(compiled(spec), "fill", given=canvas_HW3.tobytes())

    assert written == host(spec).quantised(canvas_HW3).tobytes()


def test_odd_class_names_arrive(compiled: Compile) -> None:
    names = ['a "quoted" one', "what??/", "back\\slash", "Käse", "%d"]
    decode: DecodeSpec = {**HEADS["anchor"]().decode_spec(), "num_classes": 5}
    decode["outputs"] = [*decode["outputs"][:-1], {"name": "classes", "channels": 5}]
    spec: HostSpec = {**description(decode), "names": names}

    written = run(compiled(spec), "names")

    assert written.decode().splitlines() == names


def test_pictures_of_all_shapes_lie_as_in_numpy(compiled: Compile) -> None:
    spec = description(HEADS["one-to-one"]().decode_spec())
    named = outputs(spec, random_maps(spec["decode"], 7))
    boxes_P4, _ = decoded(spec["decode"], host(spec).maps(named))
    sizes = [(1, 1), (3, 500), (500, 3), (64, 96), (480, 640), (77, 41)]

    program = compiled(spec)
    found = detect(program, [Case(named, {**ALL, "height": h, "width": w}) for h, w in sizes])

    for size, boxes in zip(sizes, found, strict=True):
        fit = host(spec).fit(*size)
        assert run(program, "fit", *map(str, size)).split() == [
            str(each).encode() for each in (fit.rows, fit.columns, fit.top, fit.left)
        ]
        wanted_P4 = fit.to_picture(boxes_P4)
        is_inside_P = (wanted_P4[:, 2:] > wanted_P4[:, :2]).all(1)
        boxes = np.sort(boxes, order="prior")  # noqa: PLW2901 - the same boxes
        assert boxes["prior"].tolist() == np.flatnonzero(is_inside_P).tolist()
        np.testing.assert_allclose(boxes["box"], wanted_P4[is_inside_P], rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("label", [0, 120])
def test_borderline_overlaps_fall_as_in_detloom(compiled: Compile, label: int) -> None:
    spec, named, kept = borderline(label)

    (found,) = detect(compiled(spec), [Case(named, {"is_own": 1, "capacity": 10})])

    assert len(found) == kept


def test_the_c_of_the_page_compiles(tmp_path: Path) -> None:
    write_host_files(tmp_path, "yolov7-tiny", description(HEADS["anchor"]().decode_spec()))
    page = Path(__file__).parents[3] / "docs" / "deployment.md"
    (code,) = re.findall(r"```c\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    (tmp_path / "find.c").write_text(code)

    compile_in(tmp_path, "-c", "find.c")

    assert (tmp_path / "find.o").exists()
