"""The published models, from settings alone: shapes, counts and outputs to the last digit that was published."""

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

from detloom.reparam import FoldReport, fold
from detloom.structures import HeadMaps, Predictions
from detloom_plugins.anchor_head import TINY_ANCHORS, AnchorHead
from detloom_plugins.elan import ElanBackbone
from detloom_plugins.elan_pan import ElanPanNeck
from detloom_plugins.fold_implicit import FoldImplicitPass
from detloom_plugins.fuse_bn import FuseBnPass

Shared = Callable[[str], Path]
Settings = dict[str, Any]

V7_ANCHORS = (
    ((12, 16), (19, 36), (40, 28)),
    ((36, 75), (76, 55), (72, 146)),
    ((142, 110), (192, 243), (459, 401)),
)
P6_ANCHORS = (
    ((19, 27), (44, 40), (38, 94)),
    ((96, 68), (86, 152), (180, 137)),
    ((140, 301), (303, 264), (238, 542)),
    ((436, 615), (739, 380), (925, 792)),
)


@dataclass(frozen=True)
class Published:
    """Settings of a published model, and its parameters in training and deployed, with 80 classes."""

    backbone: Settings
    neck: Settings
    anchors: Any
    training: int | None
    deployed: int
    optimiser_groups: tuple[int, int, int] | None = None


def _p5(depth: int, stem: list[list[int]], widths: list[int], between: list[int]) -> Settings:
    return {
        "activation": "silu",
        "stem": stem,
        "transitions": ["strided", "two-branch", "two-branch", "two-branch"],
        "transition_widths": between,
        "hidden": [64, 128, 256, 256],
        "widths": widths,
        "depth": depth,
        "taps": "even",
    }


def _p6(
    depth: int,
    stem: int,
    widths: list[int],
    transition: str,
    *,
    branches: int = 1,
    auxiliary: list[int],
    inside: list[int],
) -> tuple[Settings, Settings]:
    backbone = {
        "activation": "silu",
        "space_to_depth": True,
        "stem": [[3, 1, stem]],
        "transitions": [transition] * 5,
        "hidden": [64, 128, 256, 384, 512],
        "widths": widths,
        "depth": depth,
        "taps": "even",
        "branches": branches,
        "out_strides": [8, 16, 32, 64],
    }
    neck = {
        "activation": "silu",
        "spp": "csp",
        "down": transition,
        "hidden": [128, 256, 384, 512],
        "widths": inside,
        "outputs": [2 * width for width in inside],
        "auxiliary": auxiliary,
        "depth": depth,
        "taps": "all",
        "chain_ratio": 0.5,
        "branches": branches,
    }
    return backbone, neck


W6 = _p6(4, 64, [128, 256, 512, 768, 1024], "strided", auxiliary=[320, 640, 960, 1280], inside=[128, 256, 384, 512])
E6_WIDTHS: Any = {
    "widths": [160, 320, 640, 960, 1280],
    "auxiliary": [320, 640, 960, 1280],
    "inside": [160, 320, 480, 640],
}
E6 = _p6(6, 80, transition="combined", **E6_WIDTHS)
E6E = _p6(6, 80, transition="combined", branches=2, **E6_WIDTHS)
D6 = _p6(8, 96, [192, 384, 768, 1152, 1536], "combined", auxiliary=[384, 768, 1152, 1536], inside=[192, 384, 576, 768])
V7_NECK: Settings = {
    "activation": "silu",
    "spp": "csp",
    "down": "two-branch",
    "hidden": [128, 256, 512],
    "widths": [128, 256, 512],
    "outputs": [256, 512, 1024],
    "output": "repconv",
    "depth": 4,
    "taps": "all",
    "chain_ratio": 0.5,
}
X_NECK: Settings = V7_NECK | {
    "widths": [160, 320, 640],
    "outputs": [320, 640, 1280],
    "output": "conv",
    "depth": 6,
    "taps": "even",
    "chain_ratio": 1.0,
}

FAMILY = {
    "yolov7-tiny": Published({}, {}, TINY_ANCHORS, 6_228_762, 6_219_709, (61, 58, 58)),
    "yolov7-tiny-silu": Published({"activation": "silu"}, {"activation": "silu"}, TINY_ANCHORS, None, 6_219_709),
    "yolov7": Published(
        _p5(4, [[3, 1, 32], [3, 2, 64], [3, 1, 64]], [256, 512, 1024, 1024], [128, 256, 512, 1024]),
        V7_NECK,
        V7_ANCHORS,
        37_622_682,
        36_905_341,
        (98, 95, 95),
    ),
    "yolov7x": Published(
        _p5(6, [[3, 1, 40], [3, 2, 80], [3, 1, 80]], [320, 640, 1280, 1280], [160, 320, 640, 1280]),
        X_NECK,
        V7_ANCHORS,
        71_347_394,
        71_311_741,
    ),
    "yolov7-w6": Published(*W6, P6_ANCHORS, 82_312_436, 70_394_300, (115, 115, 115)),
    "yolov7-e6": Published(*E6, P6_ANCHORS, 111_898_292, 97_202_940),
    "yolov7-d6": Published(*D6, P6_ANCHORS, 154_709_364, 133_757_052),
    "yolov7-e6e": Published(*E6E, P6_ANCHORS, 166_408_884, 151_687_420),
}
TRAINABLE = [name for name, each in FAMILY.items() if each.training]


class Net(nn.Module):
    """Backbone, neck and head, without what trains them."""

    def __init__(self, published: Published, num_classes: int = 80, *, deploy: bool = False) -> None:
        super().__init__()
        neck = dict(published.neck) | ({"auxiliary": ()} if deploy else {})
        self.backbone = ElanBackbone(**published.backbone)
        self.neck = ElanPanNeck(self.backbone.out_specs, **neck)
        self.head = AnchorHead(self.neck.out_specs, num_classes, anchors=published.anchors, implicit=not deploy)

    def forward(self, images_BCHW: Tensor) -> HeadMaps:
        maps: HeadMaps = self.head(self.neck(self.backbone(images_BCHW)))
        return maps


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


def parity_net(shared: Shared, name: str) -> Net:
    """Return a model with the weights of the published parity vectors."""
    model = name.removesuffix(".deploy")
    with torch.device("meta"):
        net = Net(FAMILY[model], deploy=name.endswith(".deploy"))
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


def folded(net: Net, **proof: Any) -> tuple[Net, FoldReport]:
    return fold(net, [FoldImplicitPass(), FuseBnPass()], **proof)


@pytest.mark.parametrize("name", TRAINABLE)
def test_training_form_has_the_published_number_of_parameters(name: str) -> None:
    with torch.device("meta"):
        net = Net(FAMILY[name])

    assert count(net) == FAMILY[name].training


@pytest.mark.parametrize("name", ["yolov7-tiny", "yolov7-tiny-silu", "yolov7x", "yolov7-w6", "yolov7-e6e"])
def test_deployed_form_has_the_published_number_of_parameters(name: str) -> None:
    with torch.device("meta"):
        net = Net(FAMILY[name])
        net.neck.auxiliary, net.head.auxiliary = nn.ModuleList(), nn.ModuleList()

        deployed, _ = folded(net)

    assert count(deployed) == FAMILY[name].deployed


@pytest.mark.parametrize("num_classes", [1, 3, 16])
def test_parameters_follow_the_number_of_classes(num_classes: int) -> None:
    with torch.device("meta"):
        net = Net(FAMILY["yolov7-tiny"], num_classes)

    # Three anchors a level, and beside its weights each output has a bias and a multiplier.
    assert count(net) == 6_228_762 + 3 * (num_classes - 80) * (128 + 256 + 512 + 3 * 2)


@pytest.mark.parametrize("name", TRAINABLE)
def test_tensors_are_the_published_ones_in_name_and_shape(name: str, shared: Shared) -> None:
    with torch.device("meta"):
        state = Net(FAMILY[name]).state_dict()

    published = {mine: (key, shape) for key, mine, shape in entries(official(shared, name)["layers"])}

    assert published.keys() == state.keys()
    for mine, (key, shape) in published.items():
        assert list(state[mine].shape) == ([shape[1]] if key.endswith(".implicit") else shape), key


@pytest.mark.parametrize("name", ["yolov7-tiny", "yolov7", "yolov7-w6"])
def test_tensors_fall_into_the_published_groups_of_the_optimiser(name: str) -> None:
    with torch.device("meta"):
        named = list(Net(FAMILY[name]).named_parameters())

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

    deployed, report = folded(net, example=picture())

    with torch.inference_mode():
        predictions = deployed.head.decode(deployed(picture()).lead)
    assert_equals(official_decoded(predictions), expected, atol=5e-3)
    assert max(each.absolute for each in report.outputs if each.precision == "float64") <= 1e-9
    assert max(each.absolute for each in report.modules if each.precision == "float64") <= 1e-10
    assert max(each.relative for each in report.modules if each.precision == "float32") <= 1e-5
