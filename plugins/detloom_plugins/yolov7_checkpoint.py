"""The checkpoints of the published YOLOv7 models: their layers are numbered in the order of the published graphs.

A layer's tensors are called ``model.<number>.<part>``. Which number a layer of ours has follows from walking the
network as the graphs do; concatenations, sums and poolings have numbers, too. The walk notes what each layer reads, so
that a graph that is wired otherwise is refused even where all shapes agree.

Reference: Wang, Bochkovskiy and Liao, YOLOv7 (2022), figure 2 and the published checkpoints.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from detloom.detector import Detector
from detloom.errors import ArtifactError
from detloom.foreign import ForeignCheckpoint, listed
from detloom.hookspecs import hookimpl
from detloom.interfaces import Importer
from detloom.kinds import Kind
from detloom.recipe import USE, Recipe
from detloom_plugins.anchor_head import AnchorHead, ImplicitConv
from detloom_plugins.elan import ElanBackbone
from detloom_plugins.elan_pan import ElanPanNeck
from detloom_plugins.layers import Elan, RepConv, SpaceToDepth, SummedElan, TwoBranchTransition
from detloom_plugins.spatial_pyramid import SppTiny

__all__ = ["PublishedLayer", "Yolov7Importer", "published_layers"]

HEAD_KERNEL = re.compile(r"model\.(\d+)\.m\.0\.weight")
ACTIVATIONS = {"SiLU": "silu", "LeakyReLU": "leaky-relu", "ReLU": "relu"}
SLOPE = 0.1
PARTS_OF_CSP = ("entry", "bypass", "before1", "before2", "after1", "after2", "fuse")
PARTS_OF_COMBINED = ("project", "strided", "pooled")
PARTS_OF_REPCONV = {
    "rbr_dense.0": "conv3",
    "rbr_dense.1": "bn3",
    "rbr_1x1.0": "conv1",
    "rbr_1x1.1": "bn1",
    "rbr_identity": "identity",
}


class Yolov7Importer(Importer):
    """Take checkpoints of the published YOLOv7 models: in training or deployed form, averaged or not, of any classes.

    Class names, anchors and the activation come from the file, where it has them. Networks that were fused are not
    taken: their normalisation is gone.
    """

    def recognises(self, checkpoint: ForeignCheckpoint) -> bool:
        """Return whether there is a head among numbered layers."""
        return any(map(HEAD_KERNEL.fullmatch, checkpoint.tensors))

    def class_names(self, checkpoint: ForeignCheckpoint) -> tuple[str, ...]:
        """Return the names that were saved with the network, or numbers.

        Raises:
            ArtifactError: There are more or fewer names than the head has classes.
        """
        count = _num_classes(checkpoint)
        network = checkpoint.modules.get("")
        names = network.attributes.get("names") if network else None
        if isinstance(names, dict):
            names = [names.get(index) for index in range(len(names))]
        if names is None:
            return tuple(str(index) for index in range(count))
        if not isinstance(names, list | tuple) or not all(
            isinstance(name, str) and name.isprintable() for name in names
        ):
            raise ArtifactError(f"{checkpoint.path}: the class names in this file are no printable text")
        if len(names) != count:
            raise ArtifactError(
                f"{checkpoint.path}: this file has {len(names)} class names for {count} classes; it was put together "
                "from two others"
            )
        return tuple(names)

    def overrides(self, checkpoint: ForeignCheckpoint, recipe: Recipe) -> dict[str, Any]:
        """Return head, anchors, auxiliary levels and activation, as far as the file has them otherwise.

        Raises:
            ArtifactError: The recipe's network is of another family, or the file's activations are unknown.
        """
        uses = [recipe.tables.get(kind, {}).get(USE) for kind in (Kind.BACKBONE, Kind.NECK, Kind.HEAD)]
        if uses != ["elan", "elan-pan", "anchor"]:
            raise ArtifactError(f"{checkpoint.path}: '{recipe.name}' is no network of the YOLOv7 family")
        head = _head(checkpoint)
        found: dict[str, Any] = {"head.implicit": f"{head}.ia.0.implicit" in checkpoint.tensors}
        anchors = _anchors(checkpoint)
        if anchors is not None:
            found["head.anchors"] = [[[_short(side) for side in pair] for pair in level] for level in anchors.tolist()]
        if f"{head}.m2.0.weight" not in checkpoint.tensors:
            found["neck.auxiliary"] = []
        activation = _activation(checkpoint)
        if activation is not None:
            found |= {"backbone.activation": activation, "neck.activation": activation}
        absent: dict[str, Any] = {"head.implicit": True, "neck.auxiliary": []}
        return {key: value for key, value in found.items() if _setting(recipe, key, absent.get(key)) != value}

    def mapping(self, checkpoint: ForeignCheckpoint, detector: Detector) -> dict[str, str | None]:
        """Return our name of each tensor; anchors are settings.

        Raises:
            ArtifactError: The network was fused, or is wired otherwise.
        """
        fused = [name for name in checkpoint.tensors if name.endswith((".conv.bias", ".rbr_reparam.weight"))]
        if fused:
            raise ArtifactError(
                f"{checkpoint.path}: the network in this file was fused, its normalisation is gone ({fused[0]}); "
                "import the checkpoint that it was made from"
            )
        layers = published_layers(detector, lambda name: name in checkpoint.tensors)
        _check_wiring(checkpoint, layers)
        mapping: dict[str, str | None] = {}
        for number, layer in enumerate(layers):
            for part, path in layer.modules.items():
                for name in detector.get_submodule(path).state_dict():
                    mapping[_joined(f"model.{number}", part, name)] = f"{path}.{name}"
            mapping |= {f"model.{number}.{name}": ours for name, ours in layer.tensors.items()}
        head = f"model.{len(layers) - 1}"
        if _anchors(checkpoint) is not None:
            _check_anchors(checkpoint, detector)
        settled = [f"{head}.anchors", f"{head}.anchor_grid"]
        return mapping | {name: None for name in settled if name in checkpoint.tensors}


@dataclass(frozen=True, slots=True)
class PublishedLayer:
    """A layer of a published graph.

    Attributes:
        inputs: Numbers of the layers that it reads, in order; -1 is the picture.
        modules: Our path of each part that has tensors; a layer that is one part calls it by nothing.
        tensors: Our name of each tensor that belongs to no such part.
    """

    inputs: tuple[int, ...]
    modules: Mapping[str, str] = field(default_factory=dict)
    tensors: Mapping[str, str] = field(default_factory=dict)


def published_layers(detector: nn.Module, has: Callable[[str], bool]) -> list[PublishedLayer]:
    """Return the layers of a network in the published order.

    Args:
        detector: Has a backbone, a neck and a head of the YOLOv7 family.
        has: Whether the checkpoint has a tensor of a name; tells the two forms of two-branch transitions apart, one
            of which is published as a single layer.
    """
    walk = _Walk(has)
    walk.detector(detector)
    return walk.layers


class _Walk:
    """Numbers layers; each method returns the number of the layer that has the result."""

    def __init__(self, has: Callable[[str], bool]) -> None:
        self.layers: list[PublishedLayer] = []
        self._has = has

    def detector(self, detector: nn.Module) -> None:
        """Number a backbone, a neck and a head."""
        backbone, neck, head = detector.backbone, detector.neck, detector.head
        if not (isinstance(backbone, ElanBackbone) and isinstance(neck, ElanPanNeck) and isinstance(head, AnchorHead)):
            raise ArtifactError(
                "the importer yolov7 knows networks of the backbone elan, the neck elan-pan, the head anchor"
            )
        lead, auxiliary = self.neck(neck, self.backbone(backbone))
        modules: dict[str, str] = {}
        tensors: dict[str, str] = {}
        for level, conv in enumerate(head.lead):
            path = f"head.lead.{level}"
            if isinstance(conv, ImplicitConv):
                tensors |= {f"ia.{level}.implicit": f"{path}.add", f"im.{level}.implicit": f"{path}.multiply"}
                path += ".conv"
            modules[f"m.{level}"] = path
        modules |= {f"m2.{level}": f"head.auxiliary.{level}" for level in range(len(head.auxiliary))}
        self.layers.append(PublishedLayer((*lead, *auxiliary), modules, tensors))

    def backbone(self, backbone: ElanBackbone) -> list[int]:
        """Return the levels."""
        at, outputs = -1, []
        for index, layer in enumerate(backbone.stem):
            at = self._plain(at) if isinstance(layer, SpaceToDepth) else self._conv(at, f"backbone.stem.{index}")
        for index, stage in enumerate(backbone.stages):
            path = f"backbone.stages.{index}"
            at = self._transition(at, f"{path}.0", stage.get_submodule("0"))
            at, _ = self._elan(at, f"{path}.1", stage.get_submodule("1"))
            outputs.append(at)
        return [outputs[index] for index in backbone.returned]

    def neck(self, neck: ElanPanNeck, levels: list[int]) -> tuple[list[int], list[int]]:
        """Return the lead levels and the auxiliary ones."""
        at = self._spp(levels[-1], neck.spp)
        down, partial = [at], [at]
        for index, merge in enumerate(neck.top_down):
            path = f"neck.top_down.{index}"
            enlarged = self._plain(self._conv(at, f"{path}.reduce"))
            joined = self._plain(self._conv(levels[-2 - index], f"{path}.lateral"), enlarged)
            at, last = self._elan(joined, f"{path}.elan", merge.get_submodule("elan"))
            down.insert(0, at)
            partial.insert(0, last)
        up = [at]
        for index, descent in enumerate(neck.bottom_up):
            path = f"neck.bottom_up.{index}"
            joined = self._transition(at, f"{path}.down", descent.get_submodule("down"), down[index + 1])
            at, _ = self._elan(joined, f"{path}.elan", descent.get_submodule("elan"))
            up.append(at)
        lead = [self._conv_or_rep(up[index], f"neck.outputs.{index}", conv) for index, conv in enumerate(neck.outputs)]
        return lead, [self._conv(partial[index], f"neck.auxiliary.{index}") for index in range(len(neck.auxiliary))]

    def _plain(self, *inputs: int) -> int:
        self.layers.append(PublishedLayer(inputs))
        return len(self.layers) - 1

    def _parts(self, at: int, modules: Mapping[str, str]) -> int:
        self.layers.append(PublishedLayer((at,), modules))
        return len(self.layers) - 1

    def _conv(self, at: int, path: str) -> int:
        return self._parts(at, {"": path})

    def _conv_or_rep(self, at: int, path: str, module: nn.Module) -> int:
        if not isinstance(module, RepConv):
            return self._conv(at, path)
        parts = {theirs: f"{path}.{ours}" for theirs, ours in PARTS_OF_REPCONV.items()}
        if module.identity is None:
            del parts["rbr_identity"]
        return self._parts(at, parts)

    def _transition(self, at: int, path: str, module: nn.Module, *beside: int) -> int:
        """Number a transition and, in a neck, the concatenation with the level beside it."""
        match module:
            case nn.Identity():
                return at
            case nn.MaxPool2d():
                out = self._plain(at)
            case TwoBranchTransition() if not self._has(f"model.{len(self.layers)}.cv1.conv.weight"):
                pooled = self._conv(self._plain(at), f"{path}.pooled")
                strided = self._conv(self._conv(at, f"{path}.project"), f"{path}.strided")
                return self._plain(strided, pooled, *beside)
            case TwoBranchTransition():
                out = self._numbered(at, path, PARTS_OF_COMBINED)
            case _:
                out = self._conv(at, path)
        return self._plain(out, *beside) if beside else out

    def _elan(self, at: int, path: str, module: nn.Module) -> tuple[int, int]:
        """Return the aggregation, and its last branch alone."""
        if isinstance(module, SummedElan):
            outs = [self._elan(at, f"{path}.branches.{i}", branch)[0] for i, branch in enumerate(module.branches)]
            return self._plain(*reversed(outs)), outs[-1]
        if not isinstance(module, Elan):
            raise ArtifactError(
                f"published checkpoints have no {type(module).__name__}, which the recipe has; leave it out"
            )
        bypass, entry = self._conv(at, f"{path}.bypass"), self._conv(at, f"{path}.entry")
        links = [entry]
        for index, link in enumerate(module.chain):
            links.append(self._conv_or_rep(links[-1], f"{path}.chain.{index}", link))
        joined = self._plain(*(links[1 + index] for index in module.tapped), entry, bypass)
        out = self._conv(joined, f"{path}.fuse")
        return out, out

    def _spp(self, at: int, module: nn.Module) -> int:
        if not isinstance(module, SppTiny):
            return self._numbered(at, "neck.spp", PARTS_OF_CSP)
        bypass, entry = self._conv(at, "neck.spp.bypass"), self._conv(at, "neck.spp.entry")
        five, nine, thirteen = (self._plain(entry) for _ in range(3))
        mixed = self._conv(self._plain(thirteen, nine, five, entry), "neck.spp.mix")
        return self._conv(self._plain(mixed, bypass), "neck.spp.fuse")

    def _numbered(self, at: int, path: str, parts: tuple[str, ...]) -> int:
        return self._parts(at, {f"cv{number}": f"{path}.{part}" for number, part in enumerate(parts, start=1)})


def _check_wiring(checkpoint: ForeignCheckpoint, layers: list[PublishedLayer]) -> None:
    """Hold what each saved layer says that it reads against what ours reads."""
    for number, layer in enumerate(layers):
        module = checkpoint.modules.get(f"model.{number}")
        stated = module.attributes.get("f") if module else None
        stated = [stated] if isinstance(stated, int) else stated
        if not isinstance(stated, list | tuple) or not all(isinstance(each, int) for each in stated):
            continue
        # Counted from the layer itself where it is negative; the first reads the picture.
        inputs = tuple(max(number + each, -1) if each < 0 else each for each in stated)
        if inputs != layer.inputs:
            raise ArtifactError(
                f"{checkpoint.path}: layer {number} of this file reads layers {list(inputs)}, in the recipe's network "
                f"it reads {list(layer.inputs)}; the file is of another architecture"
            )


def _check_anchors(checkpoint: ForeignCheckpoint, detector: Detector) -> None:
    """Hold the two forms in which anchors are saved against each other: in cells for losses, in pixels for boxes."""
    head, pixels = _head(checkpoint), _anchors(checkpoint)
    cells = checkpoint.tensors.get(f"{head}.anchors")
    if cells is None or pixels is None:
        return
    strides = torch.tensor(detector.strides)
    if len(strides) != len(cells) or not torch.allclose(cells * strides[:, None, None], pixels, rtol=1e-2):
        raise ArtifactError(
            f"{checkpoint.path}: anchors and anchor_grid of this file contradict each other at strides "
            f"{list(detector.strides)}; it is of another architecture, or damaged"
        )


def _head(checkpoint: ForeignCheckpoint) -> str:
    numbers = [int(found[1]) for found in map(HEAD_KERNEL.fullmatch, checkpoint.tensors) if found]
    return f"model.{max(numbers)}"


def _anchors(checkpoint: ForeignCheckpoint) -> Tensor | None:
    """Return width and height in pixels, ``[levels, anchors, 2]``, or nothing where the file has none."""
    grid = checkpoint.tensors.get(f"{_head(checkpoint)}.anchor_grid")
    if grid is None:
        return None
    if grid.dim() != 6 or grid.shape[-1] != 2 or not grid.numel() or not grid.min() > 0:
        raise ArtifactError(f"{checkpoint.path}: anchor_grid has the shape {list(grid.shape)}, or no positive sizes")
    return grid.reshape(grid.shape[0], -1, 2)


def _num_classes(checkpoint: ForeignCheckpoint) -> int:
    anchors = _anchors(checkpoint)
    per_cell = 3 if anchors is None else anchors.shape[1]
    outputs = checkpoint.tensors[f"{_head(checkpoint)}.m.0.weight"].shape[0]
    count, rest = divmod(outputs, per_cell)
    if rest or count <= 5:
        raise ArtifactError(
            f"{checkpoint.path}: a head with {outputs} outputs for {per_cell} anchors has no whole number of classes"
        )
    return count - 5


def _activation(checkpoint: ForeignCheckpoint) -> str | None:
    """Return the one activation of all layers, or nothing where tensors alone were saved."""
    found = {_activation_name(checkpoint, path) for path in checkpoint.modules if path.endswith(".act")}
    if len(found) > 1 or not found <= set(ACTIVATIONS.values()):
        raise ArtifactError(
            f"{checkpoint.path}: the layers of this file have the activations {listed(sorted(found))}; one for "
            f"all is taken, among {', '.join(ACTIVATIONS.values())} (with a slope of {SLOPE})"
        )
    return next(iter(found), None)


def _activation_name(checkpoint: ForeignCheckpoint, path: str) -> str:
    module = checkpoint.modules[path]
    kind = module.kind.rpartition(".")[2]
    slope = module.attributes.get("negative_slope", SLOPE)
    if kind == "LeakyReLU" and slope != SLOPE:
        return f"LeakyReLU of slope {slope if isinstance(slope, float) else '?'}"
    return ACTIVATIONS.get(kind, kind)


def _setting(recipe: Recipe, key: str, default: Any) -> Any:
    section, _, name = key.partition(".")
    return recipe.tables[section].get(name, default)


def _short(number: float) -> float:
    return int(number) if number == int(number) else number


def _joined(*parts: str) -> str:
    return ".".join(part for part in parts if part)


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the importer."""
    register("yolov7", Yolov7Importer)
