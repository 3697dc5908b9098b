"""Every component of the catalogue passes the kit that its readers' plugins are held to."""

import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from detloom.assembly import assemble
from detloom.catalogue import bundled_rows
from detloom.foreign import ForeignCheckpoint, ForeignModule
from detloom.kinds import Kind
from detloom.recipe import Recipe, load_recipe
from detloom.testing import CHECKS, Check, checks_of, parametrize_with_checks, searches
from detloom.workshop import workshop
from detloom_plugins.anchor_head import ImplicitConv
from detloom_plugins.anchor_ratio import AnchorRatioAssigner
from detloom_plugins.atss import AtssAssigner
from detloom_plugins.csp import Bottleneck
from detloom_plugins.dynamic_k import Yolov7Assigner
from detloom_plugins.hungarian import HungarianAssigner
from detloom_plugins.layers import ConvBlock, Elan, RepConv, SpaceToDepth, SummedElan
from detloom_plugins.max_iou import MaxIouAssigner
from detloom_plugins.yolov7_layers import published_layers

SMALL = {"widths": (8, 8, 16, 16)}
NARROW_DEMO = {
    "backbone.stem": [[3, 2, 8], [3, 2, 8]],
    "backbone.hidden": [4, 4, 8, 8],
    "backbone.widths": [8, 8, 16, 16],
    "neck.hidden": [4, 4, 8],
    "neck.widths": [8, 8, 16],
    "neck.outputs": [8, 16, 16],
    "head.implicit": False,
}
# Settings of components that need some, and of those that are worth a run beside the defaults.
SETTINGS: Mapping[tuple[str, str], list[dict[str, Any]]] = {
    ("anchors", "evolved-kmeans"): [{"generations": 20, "starts": 1}],
    ("assigner", "anchor-ratio"): [{}, {"soft_labels": True}],
    ("assigner", "atss"): [{}, {"soft_labels": True}],
    ("assigner", "coarse-to-fine"): [
        {"inner": Yolov7Assigner(), "bound": "distance"},
        {"inner": AtssAssigner(), "coarse": AnchorRatioAssigner()},
    ],
    ("assigner", "hungarian"): [{}, {"soft_labels": True}, {"inside": True}],
    ("assigner", "independent"): [{"inner": HungarianAssigner(), "auxiliary": AtssAssigner()}],
    ("assigner", "lead-guided"): [{"inner": MaxIouAssigner(soft_labels=True)}],
    ("assigner", "max-iou"): [{}, {"soft_labels": True, "keep_best": False}],
    ("assigner", "paa"): [{}, {"soft_labels": True}],
    ("assigner", "task-aligned"): [{}, {"candidates": 1}],
    ("backbone", "csp"): [
        {"stem": ((3, 1, 8),), **SMALL, "depths": (1, 1, 1, 1)},
        {"stem": ((3, 1, 8),), **SMALL, "depths": (1, 2, 1, 1), "repconv": True, "transition": True, "plain_stages": 1},
    ],
    ("backbone", "csp-vovnet"): [{"stem": ((3, 2, 8), (3, 2, 16))}],
    ("backbone", "elan"): [
        {"stem": ((3, 2, 8), (3, 2, 8)), **SMALL, "hidden": (4, 8, 8, 8), "branches": 2},
        {"stem": ((3, 2, 8), (3, 2, 8)), **SMALL, "hidden": (4, 8, 8, 8), "branches": 2, "grouped": True},
    ],
    ("backbone", "repvgg"): [{"stem": 8, **SMALL, "depths": (1, 1, 1, 1)}],
    ("backbone", "timm"): [{"model": "test_resnet"}, {"model": "test_efficientnet", "normalise": False}],
    ("criterion", "yolov7"): [{}, {"focal_gamma": 1.5, "label_smoothing": 0.1}],
    ("criterion", "yolox"): [{}, {"l1": 1.0}],
    ("ema", "swa"): [{"start": 1}, {"start": 2, "every": 2}],
    ("head", "anchor"): [{}, {"objectness": False}, {"implicit": False}],
    ("head", "decoupled"): [{"width": 8, "depth": 1}, {"width": 8, "depth": 1, "objectness": False}],
    ("head", "distribution"): [{"width": 8}, {"width": 8, "bins": 5, "prior_scale": 2.0}],
    ("head", "one-to-one"): [{"width": 8}, {"width": 8, "detach": False}],
    ("neck", "elan-pan"): [
        {"widths": (8, 8, 16), "hidden": (4, 4, 8), "outputs": (8, 16, 16), "output": "repconv"},
        {"widths": (8, 8, 16), "hidden": (4, 4, 8), "outputs": (8, 16, 16), "auxiliary": (8, 0, 8), "branches": 2},
    ],
    ("neck", "fpn"): [{"reduced": (16, 16), "outputs": (16, 16, 32), "auxiliary": (8, 8, 8)}],
    ("neck", "pan"): [
        {"widths": (8, 16, 16), "pyramid": True},
        {"widths": (8, 16, 16), "auxiliary": (8, 0, 8), "block": "repconv", "enlarge": "transposed", "lateral": True},
    ],
}


@cache
def _folder() -> TemporaryDirectory[str]:
    return TemporaryDirectory()


@cache
def small_dataset() -> Path:
    """Return a folder with two pictures, one of them with two objects, in each of the formats."""
    root = Path(_folder().name)
    for place in ("coco/train", "coco/annotations", "voc/JPEGImages", "voc/Annotations", "voc/ImageSets/Main"):
        (root / place).mkdir(parents=True)
    for place in ("yolo/images/train", "yolo/labels/train"):
        (root / place).mkdir(parents=True)
    for place in ("coco/train", "voc/JPEGImages", "yolo/images/train"):
        for name in ("a", "b"):
            Image.new("RGB", (100, 50)).save(root / place / f"{name}.jpg")
    boxes = {"cat": (10, 5, 40, 30), "dog": (30, 20, 100, 50)}
    content = {
        "images": [{"id": i, "file_name": f"{name}.jpg", "width": 100, "height": 50} for i, name in enumerate("ab", 1)],
        "categories": [{"id": i, "name": name} for i, name in enumerate(boxes, 1)],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": i, "bbox": [x0, y0, x1 - x0, y1 - y0], "area": 9, "iscrowd": 0}
            for i, (x0, y0, x1, y1) in enumerate(boxes.values(), 1)
        ],
    }
    (root / "coco/annotations/instances_train.json").write_text(json.dumps(content))
    objects = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{x0 + 1}</xmin><ymin>{y0 + 1}</ymin><xmax>{x1}</xmax>"
        f"<ymax>{y1}</ymax></bndbox></object>"
        for name, (x0, y0, x1, y1) in boxes.items()
    )
    size = "<size><width>100</width><height>50</height><depth>3</depth></size>"
    (root / "voc/Annotations/a.xml").write_text(f"<annotation>{size}{objects}</annotation>")
    (root / "voc/Annotations/b.xml").write_text(f"<annotation>{size}</annotation>")
    (root / "voc/ImageSets/Main/train.txt").write_text("a\nb\n")
    rows = "0 0.25 0.35 0.3 0.5\n1 0.65 0.7 0.7 0.6\n"
    (root / "yolo/labels/train/a.txt").write_text(rows)
    (root / "yolo/data.yaml").write_text("train: images/train\nnames: [cat, dog]\n")
    return root


class Maths(nn.Module):
    """A function in the place of a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.function(x_BCHW)


def pyramid(x_BCHW: Tensor) -> Tensor:
    return torch.cat([functional.max_pool2d(x_BCHW, window, 1, window // 2) for window in (5, 9, 13)], dim=1)


def published_checkpoint() -> tuple[ForeignCheckpoint, Recipe]:
    """Return a network of the YOLOv7 family as published files have it: numbered layers, some of them described."""
    recipe = load_recipe("demo", {"head.num_classes": 2})
    detector = assemble(recipe)
    layers = published_layers(detector, lambda _name: False)
    tensors: dict[str, Tensor] = {}
    for number, layer in enumerate(layers):
        for part, path in layer.modules.items():
            own = detector.get_submodule(path).state_dict()
            tensors |= {".".join(filter(None, (f"model.{number}", part, name))): each for name, each in own.items()}
        tensors |= {f"model.{number}.{name}": detector.state_dict()[ours] for name, ours in layer.tensors.items()}
    modules = {
        "": ForeignModule("models.yolo.Model", {"names": ["cat", "dog"]}),
        "model.0": ForeignModule("models.common.Conv", {"f": -1}),
        "model.0.act": ForeignModule("torch.nn.modules.activation.LeakyReLU", {"negative_slope": 0.1}),
    }
    return ForeignCheckpoint(Path("published.pt"), "", tensors, modules), recipe


def saved_state() -> tuple[ForeignCheckpoint, Recipe]:
    """Return what ``state_dict()`` of a detector gives."""
    recipe = load_recipe("demo", {"head.num_classes": 2})
    return ForeignCheckpoint(Path("state.pt"), "", assemble(recipe).state_dict(), {}), recipe


# What a pass folds, a reader reads, or an importer imports.
EXAMPLES: Mapping[tuple[str, str], Callable[[], Any]] = {
    ("dataset", "coco"): lambda: small_dataset() / "coco",
    ("dataset", "voc"): lambda: small_dataset() / "voc",
    ("dataset", "yolo"): lambda: small_dataset() / "yolo",
    ("importer", "own-names"): saved_state,
    ("importer", "yolov7"): published_checkpoint,
    ("reparam", "drop-auxiliary"): lambda: assemble("demo", {"neck.auxiliary": [8, 8, 8]}, num_classes=2),
    ("reparam", "equalise"): lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.LeakyReLU(0.1), nn.Conv2d(4, 2, 1)),
    ("reparam", "fold-implicit"): lambda: nn.Sequential(nn.ReLU(), ImplicitConv(nn.Conv2d(3, 4, 1))),
    ("reparam", "merge-e-elan"): lambda: nn.Sequential(
        ConvBlock(3, 4), SummedElan([Elan(4, 6, hidden=4, width=4, depth=2) for _ in range(2)])
    ),
    ("reparam", "merge-repconv"): lambda: nn.Sequential(RepConv(3, 4, 2), RepConv(4, 4), ConvBlock(4, 4)),
    ("reparam", "plan-repconv"): lambda: Bottleneck(3, hidden=3, repconv=True),
    ("reparam", "raw-outputs"): lambda: assemble("demo", NARROW_DEMO, num_classes=2),
    ("reparam", "space-to-depth-conv"): lambda: nn.Sequential(SpaceToDepth(), ConvBlock(12, 4, 3)),
    ("reparam", "spp-cascade"): lambda: nn.Sequential(nn.Conv2d(3, 2, 1), Maths(pyramid)),
    ("reparam", "square"): lambda: nn.Sequential(nn.Conv2d(3, 2, 1), Maths(lambda x_BCHW: x_BCHW**2)),
    ("search", "gradient"): lambda: {
        "probabilities": {choice.key: [1 / len(choice.options)] * len(choice.options) for choice in searches.CHOICES}
    },
}


def all_checks() -> Iterator[Check]:
    """Yield the checks of all rows of the kinds that have some."""
    for row in bundled_rows():
        if row.kind in tuple(CHECKS):
            cls = workshop().component(Kind(row.kind), row.name)
            for settings in SETTINGS.get((row.kind, row.name), [{}]):
                yield from checks_of(cls, settings=settings, example=EXAMPLES.get((row.kind, row.name)))


@parametrize_with_checks(all_checks())
def test_the_catalogue_keeps_its_contracts(check: Check) -> None:
    check()


def test_the_table_of_settings_names_rows() -> None:
    rows = {(row.kind, row.name) for row in bundled_rows()}

    assert set(SETTINGS) | set(EXAMPLES) <= rows


@pytest.mark.parametrize("kind", CHECKS)
def test_every_kind_with_checks_has_rows(kind: Kind) -> None:
    assert any(row.kind == kind for row in bundled_rows())
