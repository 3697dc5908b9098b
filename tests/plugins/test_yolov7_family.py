"""The published models, from their recipes alone: shapes, counts and outputs to the last digit that was published."""

import hashlib
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from detloom.assembly import assemble, check
from detloom.detector import Detector
from detloom.interfaces import ReparamPass
from detloom.ops.maps import whole_maps
from detloom.recipe import load_recipe
from detloom.reparam import fold
from detloom.shapes import shapes_only
from detloom.structures import Predictions
from detloom_plugins.equalise import EqualisePass
from detloom_plugins.raw_outputs import RawOutputsPass
from detloom_plugins.space_to_depth_conv import SpaceToDepthConvPass
from detloom_plugins.spp_cascade import SppCascadePass

Shared = Callable[[str], Path]


@dataclass(frozen=True)
class Published:
    """Numbers of a published model with 80 classes: parameters and GFLOPs, while training and deployed."""

    training: int
    deployed: int
    training_gflops: float
    deployed_gflops: float
    optimiser_groups: tuple[int, int, int] | None = None


FAMILY = {
    "yolov7-tiny": Published(6_228_762, 6_219_709, 13.70, 13.70, (61, 58, 58)),
    "yolov7-tiny-silu": Published(6_228_762, 6_219_709, 13.70, 13.70),
    "yolov7": Published(37_622_682, 36_905_341, 105.77, 104.51, (98, 95, 95)),
    "yolov7x": Published(71_347_394, 71_311_741, 189.67, 189.67),
    "yolov7-w6": Published(82_312_436, 70_394_300, 420.11, 359.72, (115, 115, 115)),
    "yolov7-e6": Published(111_898_292, 97_202_940, 588.09, 514.43),
    "yolov7-d6": Published(154_709_364, 133_757_052, 806.06, 701.74),
    "yolov7-e6e": Published(166_408_884, 151_687_420, 915.85, 842.18),
}
# Of the tiny model with SiLU the deployed form alone was published.
TRAINABLE = [name for name in FAMILY if name != "yolov7-tiny-silu"]
DEPLOY_FORM = {"neck.auxiliary": [], "head.implicit": False}


def make(name: str, num_classes: int = 80, *, deploy: bool = False) -> Detector:
    """Return a model of the family; the published deploy form has no implicit and no auxiliary parts to begin with."""
    return assemble(name, DEPLOY_FORM if deploy else None, num_classes=num_classes)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def official(shared: Shared, name: str) -> Any:
    return json.loads(shared(f"spec/official_layers/{name}.json").read_text())


ELAN_ROLES = {"A": "bypass", "B": "entry", "fuse": "fuse"}
TRANSITION_ROLES = {"pool_proj": "pooled", "conv_proj": "project", "conv_down": "strided"}
SPP_ROLES = {"A": "bypass", "B": "entry", "mid": "mix", "fuse": "fuse"}
CSP_PARTS = ("entry", "bypass", "before1", "before2", "after1", "after2", "fuse")


def where(layer: Any, deepest: int) -> str:
    """Return our name of an official layer, from its place in the block notation."""
    block, role, level = layer["block"], layer["role"], layer["block"][-1]
    if block in ("stem", "out", "aux"):
        part = {"stem": "backbone.stem", "out": "neck.outputs", "aux": "neck.auxiliary"}[block]
        return f"{part}.{layer['index'] if block == 'stem' else int(role[1]) - 3}"
    if block == "spp":
        return f"neck.spp.{SPP_ROLES[role]}" if role in SPP_ROLES else "neck.spp"
    if block.startswith("stage"):
        return in_block(role, *(f"backbone.stages.{int(level) - 2}.{part}" for part in (0, 1)))
    path = f"top_down.{deepest - 1 - int(level)}" if block.startswith("td") else f"bottom_up.{int(level) - 4}"
    if role in ("reduce", "lateral"):
        return f"neck.{path}.{role}"
    return in_block(role, f"neck.{path}.down", f"neck.{path}.elan")


def in_block(role: str, transition: str, elan: str) -> str:
    if role in ("down", "downc"):
        return transition
    if role in TRANSITION_ROLES:
        return f"{transition}.{TRANSITION_ROLES[role]}"
    if role.startswith("g"):
        elan, role = f"{elan}.branches.{int(role[1]) - 1}", role[3:]
    return f"{elan}.{ELAN_ROLES[role]}" if role in ELAN_ROLES else f"{elan}.chain.{int(role[5:]) - 1}"


def ours(layer: Any, suffix: str, prefix: str) -> str:
    """Return our name of one tensor of an official layer."""
    kind, rest = layer["kind"], suffix.split(".", 1)[-1]
    if kind == "downc":
        part = {"cv1": "project", "cv2": "strided", "cv3": "pooled"}[suffix[:3]]
        return f"{prefix}.{part}.{rest}"
    if kind == "sppcspc":
        return f"{prefix}.{CSP_PARTS[int(suffix[2]) - 1]}.{rest}"
    if kind == "repconv":
        size = "3" if suffix.startswith("rbr_dense") else "1"
        part = "conv" if suffix.split(".")[1] == "0" else "bn"
        return f"{prefix}.{part}{size}.{suffix.split('.', 2)[-1]}"
    return f"{prefix}.{suffix}"


def head_name(suffix: str, *, implicit: bool) -> str:
    part, level, rest = suffix.split(".")
    if part in ("ia", "im"):
        return f"head.lead.{level}.{'add' if part == 'ia' else 'multiply'}"
    if part == "m2":
        return f"head.auxiliary.{level}.{rest}"
    return f"head.lead.{level}.conv.{rest}" if implicit else f"head.lead.{level}.{rest}"


def entries(layers: Any) -> Iterator[tuple[str, str, list[int]]]:
    """Return official key, our name and official shape of each tensor but the anchors."""
    deepest = max(int(each["block"][-1]) for each in layers if each["block"].startswith("stage"))
    for layer in layers:
        for suffix, shape, *_ in layer["tensors"]:
            key = f"model.{layer['index']}.{suffix}"
            if layer["block"] != "head":
                yield key, ours(layer, suffix, where(layer, deepest)), shape
            elif not suffix.startswith("anchor"):
                yield key, head_name(suffix, implicit=layer["kind"] != "head_plain"), shape


def drawn(key: str, shape: list[int]) -> NDArray[np.float32]:
    """Return the tensor that the published parity vectors were computed with."""
    random = np.random.RandomState(zlib.crc32(key.encode()))
    if key.endswith("running_var"):
        return np.asarray(0.5 + random.random_sample(shape), np.float32)
    normal = random.standard_normal(shape)
    if key.endswith(".implicit"):
        value = 0.02 * normal + (1 if ".im." in key else 0)
    elif len(shape) == 4:
        value = normal * np.sqrt(2 / (shape[1] * shape[2] * shape[3]))
    else:
        value = 0.1 * normal + (1 if key.endswith("weight") else 0)
    return np.asarray(value, np.float32)


def parity_net(shared: Shared, name: str) -> Detector:
    """Return a model with the weights of the published parity vectors."""
    with torch.device("meta"):
        net = make(name.removesuffix(".deploy"), deploy=name.endswith(".deploy"))
    state = {}
    for key, mine, shape in entries(official(shared, name)["layers"]):
        tensor = torch.tensor(0) if mine.endswith("num_batches_tracked") else torch.from_numpy(drawn(key, shape))
        state[mine] = tensor.flatten() if key.endswith(".implicit") else tensor
    net.load_state_dict(state, assign=True)
    return net.eval()


def picture() -> Tensor:
    return torch.from_numpy(np.random.RandomState(0).random_sample((1, 3, 128, 192)).astype(np.float32))


def official_raw(maps: tuple[Tensor, ...]) -> list[Tensor]:
    """Return raw maps in the published form: anchor, row, column, output."""
    return [each.unflatten(1, (3, 85)).permute(0, 1, 3, 4, 2) for each in maps]  # type: ignore[no-untyped-call] # torch types it not


def official_decoded(predictions: Predictions) -> Tensor:
    """Return predictions in the published form: cxcywh and scores, anchors before rows and columns."""
    assert predictions.objectness_BP is not None
    corner_BP2, other_BP2 = predictions.boxes_BP4.chunk(2, dim=-1)
    scores_BPC = torch.cat((predictions.objectness_BP[..., None], predictions.class_logits_BPC), -1).sigmoid()
    rows_BPO = torch.cat(((corner_BP2 + other_BP2) / 2, other_BP2 - corner_BP2, scores_BPC), dim=-1)
    levels = []
    for grid in predictions.priors.grids:
        level = rows_BPO[:, grid.span].reshape(1, -1, grid.per_cell, 85)
        levels.append(level.transpose(1, 2).flatten(1, 2))
    return torch.cat(levels, dim=1)


def assert_equals(found: Tensor, expected: Any, *, atol: float) -> None:
    assert list(found.shape) == expected["shape"]
    samples = found.flatten()[expected["flat_index"]].numpy()
    np.testing.assert_allclose(samples, expected["value"], rtol=1e-4, atol=atol)
    total = found.double()
    assert float(total.abs().sum()) == pytest.approx(expected["abs_sum"], rel=1e-5)
    assert float(total.sum()) == pytest.approx(expected["sum"], abs=1e-5 * expected["abs_sum"])
    assert float(total.max()) == pytest.approx(expected["max"], rel=1e-4)


@pytest.mark.parametrize("name", FAMILY)
def test_check_finds_the_published_parameters_and_operations(name: str) -> None:
    report = check(name)

    expected = FAMILY[name]
    assert (report.training_parameters, report.deployed_parameters) == (expected.training, expected.deployed)
    assert report.training_gflops == pytest.approx(expected.training_gflops, rel=1e-3)
    assert report.deployed_gflops == pytest.approx(expected.deployed_gflops, rel=1e-3)
    assert report.warnings == ()


@pytest.mark.parametrize("name", FAMILY)
def test_the_page_of_models_sets_ours_beside_the_published_numbers(name: str) -> None:
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    expected, report = FAMILY[name], check(name)
    trains = name in TRAINABLE

    cells = [
        f"`{name}`",
        f"{report.training_parameters:,}",
        f"{expected.training:,}" if trains else "not published",
        f"{report.deployed_parameters:,}",
        f"{expected.deployed:,}",
        f"{report.training_gflops:.2f}",
        f"{expected.training_gflops:.2f}" if trains else "not published",
        f"{report.deployed_gflops:.2f}",
        f"{expected.deployed_gflops:.2f}",
    ]

    assert f"| {' | '.join(cells)} |\n" in page


@pytest.mark.parametrize("num_classes", [1, 16])
@pytest.mark.parametrize("name", ["yolov7-tiny", "yolov7", "yolov7-w6"])
def test_parameters_follow_the_number_of_classes(name: str, num_classes: int) -> None:
    report = check(name, num_classes=num_classes)

    # Three anchors a level, and beside its weights each output has a bias and, if implicit, a multiplier.
    neck = load_recipe(name).tables["neck"]
    lead, auxiliary = neck["outputs"], neck.get("auxiliary", [])
    more = 3 * (num_classes - 80)
    training = more * (sum(width + 2 for width in lead) + sum(width + 1 for width in auxiliary))
    assert report.training_parameters == FAMILY[name].training + training
    assert report.deployed_parameters == FAMILY[name].deployed + more * sum(width + 1 for width in lead)


def test_parameters_of_yolov7_with_16_classes_are_the_published_ones() -> None:
    assert check("yolov7", num_classes=16).training_parameters == 37_277_466
    assert check("yolov7", DEPLOY_FORM, num_classes=16).training_parameters == 37_275_485


@pytest.mark.parametrize("name", TRAINABLE)
def test_tensors_are_the_published_ones_in_name_and_shape(name: str, shared: Shared) -> None:
    with torch.device("meta"):
        state = make(name).state_dict()

    published = {mine: (key, shape) for key, mine, shape in entries(official(shared, name)["layers"])}

    assert published.keys() == state.keys()
    for mine, (key, shape) in published.items():
        assert list(state[mine].shape) == ([shape[1]] if key.endswith(".implicit") else shape), key


def golden(shared: Shared, name: str) -> Any:
    return json.loads(shared("golden/models.json").read_text())[name]


def norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [each for each in model.modules() if isinstance(each, nn.BatchNorm2d)]


def convolutions(model: nn.Module) -> int:
    return sum(isinstance(each, nn.Conv2d) for each in model.modules())


@pytest.mark.parametrize("name", TRAINABLE)
def test_counts_are_those_of_the_model_that_was_run(name: str, shared: Shared) -> None:
    expected = golden(shared, name)

    with torch.device("meta"):
        net = make(name)
    deployed = net.fuse()

    assert (count(net), convolutions(net), len(norms(net))) == (
        expected["parameters"],
        expected["convolutions"],
        expected["batch_norms"],
    )
    assert {each.eps for each in norms(net)} == set(expected["batch_norm_eps"])
    assert {each.momentum for each in norms(net)} == set(expected["batch_norm_momentum"])
    assert list(net.strides) == expected["strides"]
    # What the published fusion leaves behind, ours takes away: implicit tensors, auxiliary heads and outputs.
    neck = load_recipe(name).tables["neck"]
    outputs = sum(9 * width * out + out for width, out in zip(neck["widths"], neck.get("auxiliary", []), strict=False))
    left = expected["fused_leftover_implicit_parameters"] + expected["fused_leftover_auxiliary_head_parameters"]
    assert count(deployed) == expected["fused_parameters"] - left - outputs
    assert len(norms(deployed)) == expected["fused_batch_norms"]
    assert convolutions(deployed) == expected["fused_convolutions"] - 2 * len(neck.get("auxiliary", []))


@pytest.mark.parametrize("name", TRAINABLE)
def test_keys_of_the_tensors_have_the_hash_of_the_model_that_was_run(name: str, shared: Shared) -> None:
    with torch.device("meta"):
        net = make(name)
    state = net.state_dict()
    layers = official(shared, name)["layers"]
    levels, per_level, _ = np.shape(load_recipe(name).tables["head"]["anchors"])

    def line(key: str, tensor: Tensor) -> str:
        shape = (1, len(tensor), 1, 1) if key.endswith(".implicit") else tuple(tensor.shape)
        return f"{key} {shape} {str(tensor.dtype).removeprefix('torch.')}"

    # Two buffers of the published head hold the anchors, which ours has as settings.
    head = f"model.{layers[-1]['index']}"
    lines = [
        *(line(key, state[mine]) for key, mine, _ in entries(layers)),
        f"{head}.anchors {(levels, per_level, 2)} float32",
        f"{head}.anchor_grid {(levels, 1, per_level, 1, 1, 2)} float32",
    ]

    expected = golden(shared, name)
    assert len(lines) == expected["state_tensors"]
    assert hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest() == expected["state_keys_sha256"]


@pytest.mark.parametrize("name", TRAINABLE)
def test_outputs_have_the_shapes_of_the_model_that_was_run(name: str, shared: Shared) -> None:
    expected = golden(shared, name)

    with shapes_only():
        net = make(name)
        training = net.train()(torch.rand(expected["input"]))
        lead = net.eval()(torch.rand(expected["input"])).lead
        decoded = net.head.decode(lead)

    def shapes(maps: tuple[Tensor, ...]) -> list[list[int]]:
        return [[1, 3, *each.shape[2:], each.shape[1] // 3] for each in maps]

    assert shapes((*training.lead, *training.auxiliary)) == expected["train_output"]
    assert shapes(lead) == expected["eval_output"][1]
    assert [1, decoded.boxes_BP4.shape[1], decoded.class_logits_BPC.shape[2] + 5] == expected["eval_output"][0]


@pytest.mark.parametrize("name", TRAINABLE)
def test_anchors_and_initial_biases_are_those_of_the_model_that_was_run(name: str, shared: Shared) -> None:
    expected = golden(shared, name)

    assert load_recipe(name).tables["head"]["anchors"] == expected["anchors_px"]
    if name != "yolov7-tiny":
        return
    state = make(name).state_dict()
    biases = [state[f"head.lead.{level}.conv.bias"].view(3, 85) for level in range(3)]
    for found, objectness, classes in zip(
        biases, expected["head_bias_mean_objectness"], expected["head_bias_mean_class"], strict=True
    ):
        # What is drawn beside the prior is at most 1 / sqrt(channels).
        assert float(found[:, 4].mean()) == pytest.approx(objectness, abs=0.1)
        assert float(found[:, 5:].mean()) == pytest.approx(classes, abs=0.02)


@pytest.mark.parametrize("name", ["yolov7-tiny", "yolov7", "yolov7-w6"])
def test_tensors_fall_into_the_published_groups_of_the_optimiser(name: str) -> None:
    with torch.device("meta"):
        named = list(make(name).named_parameters())

    biases = sum(key.endswith("bias") for key, _ in named)
    decayed = sum(tensor.dim() > 1 for _, tensor in named)

    assert (len(named) - biases - decayed, decayed, biases) == FAMILY[name].optimiser_groups


@pytest.mark.parametrize(
    "name",
    [
        "yolov7-tiny",
        "yolov7-tiny.deploy",
        "yolov7-tiny-silu.deploy",
        *(
            pytest.param(slow, marks=pytest.mark.slow)
            for slow in (
                "yolov7",
                "yolov7.deploy",
                "yolov7x",
                "yolov7-w6",
                "yolov7-w6.deploy",
                "yolov7-e6",
                "yolov7-d6",
                "yolov7-e6e",
            )
        ),
    ],
)
def test_outputs_are_the_published_ones(name: str, shared: Shared) -> None:
    expected = json.loads(shared("spec/golden/forward.json").read_text())["models"][name]
    net = parity_net(shared, name)

    with torch.inference_mode():
        maps = net(picture())
        predictions = net.head.decode(maps.lead)

    for found, level in zip(official_raw(maps.lead), expected["raw_levels"], strict=True):
        assert_equals(found, level, atol=1e-3)
    assert_equals(official_decoded(predictions), expected["decoded"], atol=5e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yolov7-w6", "yolov7-e6e"])
def test_auxiliary_outputs_are_the_published_ones(name: str, shared: Shared) -> None:
    expected = json.loads(shared("spec/golden/forward.json").read_text())["models"][name]["train_mode_outputs"]
    net = parity_net(shared, name).train()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()

    with torch.inference_mode():
        maps = net(picture())

    for found, level in zip(official_raw((*maps.lead, *maps.auxiliary)), expected, strict=True):
        assert_equals(found, level, atol=1e-3)


def test_folding_keeps_the_outputs_within_the_published_tolerance(shared: Shared) -> None:
    net = parity_net(shared, "yolov7-tiny")
    expected = json.loads(shared("spec/golden/forward.json").read_text())["models"]["yolov7-tiny"]["decoded"]

    deployed, report = fold(net, net.passes, example=picture())

    with torch.inference_mode():
        predictions = deployed.predictions(picture())
    assert_equals(official_decoded(predictions), expected, atol=5e-3)
    assert max(each.absolute for each in report.outputs if each.precision == "float64") <= 1e-9
    assert max(each.absolute for each in report.modules if each.precision == "float64") <= 1e-10
    assert max(each.relative for each in report.modules if each.precision == "float32") <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TRAINABLE if name != "yolov7-tiny"])
def test_deployed_form_gives_the_published_outputs(name: str, shared: Shared) -> None:
    expected = json.loads(shared("spec/golden/forward.json").read_text())["models"][name]
    net = parity_net(shared, name)

    deployed = net.fuse()

    with torch.inference_mode():
        maps = deployed(picture())
        predictions = deployed.head.decode(maps.lead)
    assert sum(each.numel() for each in deployed.parameters()) == FAMILY[name].deployed
    for found, level in zip(official_raw(maps.lead), expected["raw_levels"], strict=True):
        assert_equals(found, level, atol=1e-3)
    assert_equals(official_decoded(predictions), expected["decoded"], atol=5e-3)


@pytest.mark.parametrize(
    ("name", "rewrite", "done"),
    [
        ("yolov7-tiny", EqualisePass(), "the channels of 55 of 58 convolutions with those that read them"),
        pytest.param("yolov7", SppCascadePass(), "its windows are in a row already", marks=pytest.mark.slow),
        pytest.param(
            "yolov7-w6", SpaceToDepthConvPass(), "0 and 1.conv as one 6x6 convolution", marks=pytest.mark.slow
        ),
    ],
)
def test_forms_for_chips_give_the_published_outputs(name: str, rewrite: ReparamPass, done: str, shared: Shared) -> None:
    expected = json.loads(shared("spec/golden/forward.json").read_text())["models"][name]
    net = parity_net(shared, name)

    deployed, report = fold(net, (*net.passes, rewrite, RawOutputsPass()))

    with torch.inference_mode():
        maps = deployed(picture())
        predictions = deployed.head.decode(maps.lead)
    assert done in [each.fold.reason for each in report.folds]
    assert len(maps.lead) == 3 * len(expected["raw_levels"])
    whole = whole_maps(deployed.head.decode_spec(), maps.lead)
    for found, level in zip(official_raw(whole), expected["raw_levels"], strict=True):
        assert_equals(found, level, atol=1e-3)
    assert_equals(official_decoded(predictions), expected["decoded"], atol=5e-3)
