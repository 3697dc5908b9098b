"""The numpy decoder against torch: heads, suppression, prediction, and bounds of what quantisation costs."""

import ast
import contextlib
import inspect
import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from host_cases import (
    HEADS,
    INPUT,
    LEVELS,
    NUMBERS,
    SMALL,
    borderline,
    description,
    host,
    outputs,
    random_maps,
    small_outputs,
    split,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from detloom.data.letterbox import Letterbox
from detloom.decode_spec import DecodeSpec
from detloom.detector import Detector
from detloom.export.network import RawMaps
from detloom.host import decoder as decoder_module
from detloom.host.decoder import Decoder, Fit, decoded
from detloom.interfaces import Assigner, Backbone, Criterion, Head
from detloom.ops.nms import suppress
from detloom.structures import Assignment, Predictions, Priors, Targets


@cache
def head(name: str) -> Head:
    torch.manual_seed(0)
    return HEADS[name]().eval()


class Strided(Backbone):
    """Levels of random convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.out_specs = LEVELS
        channels = (3, *(spec.channels for spec in LEVELS))
        self.stages = nn.ModuleList(
            nn.Conv2d(channels[i], channels[i + 1], 8 if i == 0 else 2, stride=8 if i == 0 else 2) for i in range(3)
        )

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        levels: list[Tensor] = []
        for stage in self.stages:
            levels.append(stage(levels[-1] if levels else images_BCHW))
        return tuple(levels)


class Nobody(Assigner):
    """Assigns nothing: nothing is trained here."""

    def assign(self, predictions: Predictions, targets: Targets) -> Assignment:
        raise NotImplementedError


class Nothing(Criterion):
    """Costs nothing, for the same reason."""

    def losses(self, predictions: Predictions, assignment: Assignment, targets: Targets) -> dict[str, Tensor]:
        raise NotImplementedError


def widen_(conv: nn.Module, _: object, raw: Tensor) -> None:
    """Let the outputs of a convolution vary by 2 about 0."""
    assert isinstance(conv, nn.Conv2d)
    if conv.bias is not None:
        conv.bias.zero_()
        conv.weight *= 2 / (raw - raw.mean((0, 2, 3), keepdim=True)).std()


def detector_of(name: str) -> Detector:
    """Return a detector without training that finds boxes of all scores."""
    torch.manual_seed(3)
    made = HEADS[name]().eval()
    names = [f"class {index}" for index in range(made.num_classes)]
    detector = Detector(Strided(), None, made, Nobody(), Nothing(), names=names).eval()
    hooks = [each.register_forward_hook(widen_) for each in made.modules() if isinstance(each, nn.Conv2d)]
    with torch.no_grad():
        detector(torch.rand(1, 3, *INPUT))
    for hook in hooks:
        hook.remove()
    return detector


def small(cells: int, **selection: Any) -> Decoder:
    return host(description(SMALL, size=(8, 8 * cells), **selection))


@pytest.mark.parametrize("name", HEADS)
def test_host_finds_what_predict_finds(name: str) -> None:
    detector = detector_of(name)
    options: dict[str, Any] = {"score": 0.5, "overlap": 0.5, "max_detections": 40}
    spec = description(detector.head.decode_spec(), **options)
    # Of sizes whose canvas prediction does not cut.
    for seed, size in enumerate([(70, 96), (32, 44)]):
        picture = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
        (wanted,) = detector.predict(picture, image_size=INPUT, **options)
        decoder = host(spec)

        tensor = decoder.quantised(Letterbox.fit(size, INPUT).apply(picture))
        with torch.inference_mode():
            maps = RawMaps(detector.deployed())(torch.from_numpy(tensor))
        boxes_N4, scores_N, labels_N = decoder.detect([each.numpy() for each in maps], decoder.fit(*size))

        assert len(boxes_N4) > 3
        np.testing.assert_allclose(boxes_N4, wanted.boxes_N4, rtol=0, atol=1e-3)
        np.testing.assert_allclose(scores_N, wanted.scores_N, rtol=0, atol=1e-5)
        assert labels_N.tolist() == wanted.labels_N.tolist()


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("is_split", [False, True], ids=["together", "split"])
@pytest.mark.parametrize("name", HEADS)
def test_layouts_and_maps_change_nothing(name: str, layout: Any, is_split: bool) -> None:
    decode = head(name).decode_spec()
    maps = random_maps(decode, 1)
    spec = description(split(decode) if is_split else decode, layout=layout)
    wanted = decoded(description(decode)["decode"], [each[0].numpy() for each in maps])

    decoder = host(spec)
    found = decoded(spec["decode"], decoder.maps(outputs(spec, maps)))

    np.testing.assert_array_equal(found[0], wanted[0])
    np.testing.assert_array_equal(found[1], wanted[1])


def bounds_of(decode: DecodeSpec, step: float) -> tuple[NDArray[np.float64], float]:
    """Return how far a side of each prior's box, in pixels, and a score can be off where logits are off by a step.

    The sigmoid's slope is 1/4 at most. That of its square is 8/27 at most; a prior of an anchor head is four times as
    wide. The mean of a softmax moves by the mean distance of its bins from it, half of their range at most.
    """
    sides, box = [], decode["box"]
    for level in decode["levels"]:
        cells = INPUT[0] * INPUT[1] // level["stride"] ** 2
        for prior in level["priors"] * cells:
            if box["form"] == "distances":
                sides.append([(box["bins"] - 1) / 2 * step * level["stride"]] * 4)
            else:
                assert box["size"]["exponent"] == 2
                center = box["center"]["scale"] / 4 * step * level["stride"]
                sides.append([center + 4 * 8 / 27 * step * side / 2 for side in prior] * 2)
    return np.array(sides), len(decode["score"]) / 4 * step


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16"])
@pytest.mark.parametrize("name", ["anchor", "anchor without objectness", "distribution", "one-to-one"])
def test_quantised_outputs_are_decoded_within_their_step(name: str, dtype: Any) -> None:
    decode = head(name).decode_spec()
    maps = random_maps(decode, 2)
    exact = head(name).decode(maps)
    scores_PC = exact.class_logits_BPC[0].sigmoid()
    if exact.objectness_BP is not None:
        scores_PC = exact.objectness_BP[0].sigmoid()[:, None] * scores_PC
    spec = description(decode, dtype=dtype, layout="NHWC")

    decoder = host(spec)
    boxes_P4, found_PC = decoded(spec["decode"], decoder.maps(outputs(spec, maps)))

    # A number is rounded to half a step; the rest is float32.
    sides_P4, score = bounds_of(decode, (NUMBERS[dtype][0] or 0) / 2)
    assert (np.abs(boxes_P4 - exact.boxes_BP4[0].numpy()) <= sides_P4 + 1e-3).all()
    assert np.abs(found_PC - scores_PC.numpy()).max() <= score + 1e-5


@pytest.mark.parametrize("name", ["anchor-free", "anchor-free without objectness"])
def test_quantised_sizes_that_are_powers_are_decoded_within_their_step(name: str) -> None:
    decode = head(name).decode_spec()
    maps = random_maps(decode, 2)
    exact_P4 = head(name).decode(maps).boxes_BP4[0].numpy()
    spec = description(decode, dtype="int8")

    decoder = host(spec)
    boxes_P4, _ = decoded(spec["decode"], decoder.maps(outputs(spec, maps)))

    half = 0.08 / 2
    stride_P = np.concatenate([np.full(INPUT[0] * INPUT[1] // s**2, s) for s in (8, 16, 32)])[:, None]
    sizes_P2, exact_P2 = boxes_P4[:, 2:] - boxes_P4[:, :2], exact_P4[:, 2:] - exact_P4[:, :2]
    assert (np.abs(np.log(sizes_P2 / exact_P2)) <= half + 1e-3).all()
    centers_P2 = (boxes_P4[:, 2:] + boxes_P4[:, :2] - exact_P4[:, 2:] - exact_P4[:, :2]) / 2
    assert (np.abs(centers_P2) <= half * stride_P * (1 + 1e-3) + 1e-3 * np.maximum(exact_P2, 1)).all()


@given(
    seed=st.integers(0, 10_000),
    classes=st.sampled_from([1, 3, 130]),
    score=st.sampled_from([0.0, 0.2, 0.5]),
    overlap=st.sampled_from([0.0, 0.3, 0.7, 1.0]),
    max_detections=st.sampled_from([1, 5, 300]),
    candidates=st.sampled_from([1, 7, 30000]),
    agnostic=st.booleans(),
    suppression=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_the_kept_boxes_are_those_of_the_suppression(
    seed: int, classes: int, suppression: bool, **options: Any
) -> None:
    decode: DecodeSpec = {**SMALL, "num_classes": classes, "suppression": suppression}
    decode["outputs"] = [*SMALL["outputs"][:2], {"name": "classes", "channels": classes}]
    random = np.random.default_rng(seed)
    raw = random.normal(0, [[2.0]] * 2 + [[0.7]] * 2 + [[1.5]] * classes, (4 + classes, 40)).astype(np.float32)
    boxes_P4, _ = decoded(decode, [raw[:, None]])
    logits_PC = torch.from_numpy(raw[4:].T.copy())
    # Sigmoids of numpy and torch may differ in their last bit.
    gaps = logits_PC.amax(1).sigmoid().sort().values.diff()
    assume(float(gaps.min()) > 1e-6)
    priors = Priors.on_grids([(1, 40)], [8], torch.ones(1, 1, 2))
    limits = {**options, "overlap": options["overlap"] if suppression else None}
    ((wanted_N4, scores_N, wanted_N),) = suppress(
        Predictions(torch.from_numpy(boxes_P4)[None], logits_PC[None], None, priors), **limits
    ).per_image()

    decoder = host(description(decode, size=(8, 320), **options))
    found_N4, found_scores_N, labels_N = decoder.detect([raw[None, :, None]])

    np.testing.assert_array_equal(found_N4, wanted_N4)
    np.testing.assert_allclose(found_scores_N, scores_N, rtol=0, atol=1e-6)
    assert labels_N.tolist() == wanted_N.tolist()


def test_nothing_is_found_where_nothing_scores() -> None:
    maps = small_outputs([(4, 4, 8, 8)] * 2, [(-9, -9, -9)] * 2)

    boxes_N4, scores_N, labels_N = small(2).detect(maps, Fit((8, 16), (8, 16)))

    assert boxes_N4.shape == (0, 4)
    assert scores_N.shape == labels_N.shape == (0,)


def test_of_equal_scores_the_first_prior_wins() -> None:
    maps = small_outputs([(8, 4, 8, 8), (9, 4, 8, 8)], [(1, 0, 0), (1, 0, 0)])

    boxes_N4, _, _ = small(2).detect(maps)

    np.testing.assert_allclose(boxes_N4, [[4, 0, 12, 8]], atol=1e-5)


def test_of_equal_classes_the_first_is_the_label() -> None:
    maps = small_outputs([(4, 4, 8, 8)], [(0, 1, 1)])

    _, _, labels_N = small(1).detect(maps)

    assert labels_N.tolist() == [1]


@pytest.mark.parametrize(("agnostic", "labels"), [(False, [0, 1]), (True, [0])])
def test_classes_suppress_one_another_where_they_should(agnostic: bool, labels: list[int]) -> None:
    maps = small_outputs([(4, 4, 8, 8)] * 2, [(2, 0, 0), (0, 1, 0)])

    _, _, labels_N = small(2, agnostic=agnostic).detect(maps)

    assert labels_N.tolist() == labels


@pytest.mark.parametrize(("overlap", "count"), [(0.6, 2), (0.59, 1)])
def test_overlap_must_exceed_its_limit(overlap: float, count: int) -> None:
    # They share 6 of 10 columns.
    maps = small_outputs([(4, 4, 8, 8), (6, 4, 8, 8)], [(2, 0, 0), (1, 0, 0)])

    boxes_N4, _, _ = small(2, overlap=overlap).detect(maps)

    assert len(boxes_N4) == count


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("channel", range(7))
def test_priors_that_are_no_numbers_are_left_out(number: float, channel: int) -> None:
    maps = small_outputs([(4, 4, 8, 8), (20, 4, 8, 8)], [(2, 0, 0), (2, 1, 0)])
    maps[0][0, channel, 0, 0] = number

    boxes_N4, scores_N, _ = small(2).detect(maps)

    assert np.isfinite(boxes_N4).all()
    assert np.isfinite(scores_N).all()
    assert len(boxes_N4) >= 1


def test_classes_stay_apart_in_pictures_of_any_size() -> None:
    # They are moved by 4096 pixels a class, which would bring the second box to the first.
    maps = small_outputs([(4100, 4100, 8, 8), (4, 4, 8, 8)], [(2, 0, 0), (0, 1, 0)])

    _, _, labels_N = small(2).detect(maps)

    assert labels_N.tolist() == [0, 1]


@pytest.mark.parametrize("label", [0, 120])
def test_borderline_overlaps_fall_as_in_detloom(label: int) -> None:
    spec, named, count = borderline(label)

    boxes_N4, _, labels_N = host(spec).detect(named)

    assert len(boxes_N4) == count
    assert set(labels_N.tolist()) == {label}


def test_no_more_boxes_are_compared_than_candidates() -> None:
    # The best two are one object; the third would be another.
    maps = small_outputs([(4, 4, 8, 8), (4, 4, 8, 8), (20, 4, 8, 8)], [(3, 0, 0), (2, 0, 0), (1, 0, 0)])

    found = [len(small(3, candidates=candidates).detect(maps)[0]) for candidates in (1, 2, 3)]

    assert found == [1, 1, 2]


def test_boxes_beside_the_picture_are_left_out_and_others_clipped() -> None:
    # A square picture fills the middle 8 of 24 columns.
    maps = small_outputs([(4, 4, 8, 8), (8, 4, 8, 8), (12, 4, 4, 4)], [(3, 0, 0), (2, 0, 0), (1, 0, 0)])

    boxes_N4, scores_N, _ = small(3).detect(maps, Fit((16, 16), (8, 24)))

    np.testing.assert_allclose(boxes_N4, [[0, 0, 8, 16], [4, 4, 12, 12]], atol=1e-5)
    np.testing.assert_allclose(scores_N, 1 / (1 + np.exp([-2.0, -1.0])), rtol=1e-6)


def test_outputs_are_told_apart_by_name() -> None:
    decode = head("anchor").decode_spec()
    spec = description(split(decode))
    named = outputs(spec, random_maps(decode, 3))
    decoder = host(spec)

    in_order = decoder.detect(list(named.values()))
    by_name = decoder.detect(dict(reversed(named.items())))

    assert len(in_order[0]) > 0
    for one, other in zip(in_order, by_name, strict=True):
        np.testing.assert_array_equal(one, other)


def test_each_image_of_a_batch_is_decoded() -> None:
    decode = head("anchor").decode_spec()
    spec = description(decode)
    both = [outputs(spec, random_maps(decode, seed)) for seed in (3, 4)]
    decoder = host(spec)

    batch = {name: np.concatenate([each[name] for each in both]) for name in both[0]}

    for image, alone in enumerate(both):
        np.testing.assert_array_equal(decoder.detect(batch, image=image)[0], decoder.detect(alone)[0])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda named: named.pop("map1"), "outputs are missing: map1; given are: map0, map2"),
        (lambda named: named.update(map0=named["map0"].astype(np.float32)), "map0 is float32 .* has int8"),
        (
            lambda named: named.update(map0=named["map0"][:, :, :3]),
            r"map0 is int8 \[1, 8, 3, 24\]; .* \[1, 8, 12, 24\]",
        ),
    ],
    ids=["missing", "made real", "another shape"],
)
def test_outputs_of_another_file_are_refused(change: Any, words: str) -> None:
    decode = head("anchor").decode_spec()
    spec = description(decode, dtype="int8", layout="NHWC")
    named = outputs(spec, random_maps(decode, 3))
    change(named)

    with pytest.raises(ValueError, match=words):
        host(spec).detect(named)


def test_a_wrong_number_of_outputs_is_refused() -> None:
    with pytest.raises(ValueError, match="2 outputs given, 1 expected, in this order: map0"):
        small(1).detect(small_outputs([(4, 4, 8, 8)], [(1, 0, 0)]) * 2)


def test_a_description_of_the_future_is_refused() -> None:
    with pytest.raises(ValueError, match="format 2, and this decoder reads 1"):
        Decoder({**description(SMALL, size=(8, 8)), "format": 2})


@pytest.mark.parametrize("dtype", NUMBERS)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_pixels_are_quantised_to_the_nearest_number(dtype: Any, layout: Any) -> None:
    spec = description(SMALL, dtype=dtype, layout=layout, size=(16, 16))
    canvas_HW3 = np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)

    tensor = host(spec).quantised(canvas_HW3)

    assert tensor.dtype == dtype
    assert tensor.shape == ((1, 16, 16, 3) if layout == "NHWC" else (1, 3, 16, 16))
    first_3 = tensor[0, 3, 5] if layout == "NHWC" else tensor[0, :, 3, 5]
    pixel_3 = canvas_HW3[3, 5].astype(np.float32)
    # With a scale of 1/255, or of 1 at zero point -128, numbers are those of the picture.
    wanted_3 = (pixel_3 / 255).astype(dtype) if "float" in dtype else pixel_3 - (128 if dtype == "int8" else 0)
    np.testing.assert_array_equal(first_3, wanted_3)


@given(height=st.integers(1, 200), width=st.integers(1, 200), seed=st.integers(0, 100))
@settings(max_examples=60, deadline=None)
def test_a_picture_lies_on_the_input_as_detloom_lays_it(height: int, width: int, seed: int) -> None:
    picture = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    letterbox = Letterbox.fit((height, width), INPUT)
    decoder = host(description(SMALL, dtype="uint8", layout="NHWC"))

    tensor, fit = decoder.prepare(picture)

    # Half a level may be rounded either way, and OpenCV interpolates in steps of 1/2048.
    assert np.abs(tensor[0].astype(int) - letterbox.apply(picture).astype(int)).max() <= 1
    boxes_N4 = np.random.default_rng(seed).uniform(-20, 120, (20, 4)).astype(np.float32)
    np.testing.assert_array_equal(fit.to_picture(boxes_N4), letterbox.boxes_to_picture(torch.from_numpy(boxes_N4)))


@pytest.mark.parametrize("picture", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.float32)], ids=["grey", "real"])
def test_what_is_no_picture_is_refused(picture: NDArray[Any]) -> None:
    with pytest.raises(ValueError, match=r"a picture is uint8 \[H, W, 3\], RGB; got"):
        small(1).prepare(picture)


def test_the_file_needs_an_old_python_and_numpy_alone() -> None:
    tree = ast.parse(inspect.getsource(decoder_module), feature_version=(3, 8))

    # What stands under TYPE_CHECKING is not imported on a device.
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in imports if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in imports if isinstance(node, ast.ImportFrom)}
    assert names == {"__future__", "argparse", "collections.abc", "json", "math", "numpy", "sys", "typing"}


def test_the_program_prints_a_line_for_each_box(tmp_path: Path) -> None:
    decode = head("anchor").decode_spec()
    spec = description(decode, dtype="int8", layout="NHWC")
    named = outputs(spec, random_maps(decode, 3))
    (tmp_path / "net.host.json").write_text(json.dumps(spec))
    np.savez(tmp_path / "outputs.npz", **named)  # type: ignore[arg-type]  # numpy types its options alone
    boxes_N4, scores_N, labels_N = _with_score(spec, 0.5).detect(named, Fit((30, 40), INPUT))

    # Isolated and from elsewhere, so that nothing of detloom can be found.
    command = [sys.executable, "-I", inspect.getfile(decoder_module), "net.host.json", "outputs.npz"]
    options = ["--picture", "30", "40", "--score", "0.5"]
    result = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, check=True)

    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(rows) > 3
    np.testing.assert_allclose([row["box"] for row in rows], boxes_N4, atol=5e-4)
    np.testing.assert_allclose([row["score"] for row in rows], scores_N, atol=5e-6)
    assert [row["class"] for row in rows] == [f"class {label}" for label in labels_N]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (("absent.json", "outputs.npz"), "No such file or directory: 'absent.json'"),
        (("net.host.json", "absent.npz"), "No such file or directory: 'absent.npz'"),
        (("net.host.json", "outputs.npz"), "outputs are missing: "),
    ],
)
def test_the_program_says_in_a_line_what_it_cannot_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], files: tuple[str, str], said: str
) -> None:
    (tmp_path / "net.host.json").write_text(json.dumps(description(head("anchor").decode_spec())))
    np.savez(tmp_path / "outputs.npz", other=np.zeros(3))

    with pytest.raises(SystemExit, match="2"), contextlib.chdir(tmp_path):
        decoder_module.main(files)

    assert said in capsys.readouterr().err


def _with_score(spec: Any, score: float) -> Decoder:
    decoder = Decoder(spec)
    decoder.selection["score"] = score
    return decoder
