"""The layers of our YOLOv7 networks, numbered in the order of the published graphs.

Which number a layer of ours has follows from walking the network as the graphs do; concatenations, sums and poolings
have numbers, too. The walk notes what each layer reads, so that a graph that is wired otherwise is found out even where
all shapes agree.

Reference: Wang, Bochkovskiy and Liao, YOLOv7 (2022), figure 2 and the published checkpoints.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import nn

from detloom.errors import ArtifactError
from detloom_plugins.anchor_head import AnchorHead, ImplicitConv
from detloom_plugins.elan import ElanBackbone
from detloom_plugins.elan_pan import ElanPanNeck
from detloom_plugins.layers import Elan, RepConv, SpaceToDepth, SummedElan, TwoBranchTransition
from detloom_plugins.spatial_pyramid import SppTiny

__all__ = ["PublishedLayer", "published_layers"]

PARTS_OF_CSP = ("entry", "bypass", "before1", "before2", "after1", "after2", "fuse")
PARTS_OF_COMBINED = ("project", "strided", "pooled")
PARTS_OF_REPCONV = {
    "rbr_dense.0": "conv3",
    "rbr_dense.1": "bn3",
    "rbr_1x1.0": "conv1",
    "rbr_1x1.1": "bn1",
    "rbr_identity": "identity",
}
# What our networks do by functions.
PYRAMID = tuple(nn.MaxPool2d(window, 1, window // 2) for window in (5, 9, 13))
ENLARGED = nn.Upsample(scale_factor=2.0, mode="nearest")


@dataclass(frozen=True, slots=True)
class PublishedLayer:
    """A layer of a published graph.

    Attributes:
        inputs: Numbers of the layers that it reads, in order; -1 is the picture.
        modules: Our path of each part that has tensors; a layer that is one part calls it by nothing.
        tensors: Our name of each tensor that belongs to no such part.
        plain: What it has of torch's modules without tensors, activations aside, in order: pooling, enlarging.
    """

    inputs: tuple[int, ...]
    modules: Mapping[str, str] = field(default_factory=dict)
    tensors: Mapping[str, str] = field(default_factory=dict)
    plain: tuple[nn.Module, ...] = ()


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
            enlarged = self._plain(self._conv(at, f"{path}.reduce"), plain=(ENLARGED,))
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
        source = partial if neck.partial_auxiliary else down
        auxiliary = [
            self._conv(source[level], f"neck.auxiliary.{index}") for index, level in enumerate(neck.auxiliary_levels)
        ]
        return lead, auxiliary

    def _plain(self, *inputs: int, plain: tuple[nn.Module, ...] = ()) -> int:
        self.layers.append(PublishedLayer(inputs, plain=plain))
        return len(self.layers) - 1

    def _parts(self, at: int, modules: Mapping[str, str], *plain: nn.Module) -> int:
        self.layers.append(PublishedLayer((at,), modules, plain=plain))
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
                out = self._plain(at, plain=(module,))
            case TwoBranchTransition() if not self._has(f"model.{len(self.layers)}.cv1.conv.weight"):
                pooled = self._conv(self._plain(at, plain=(module.pool,)), f"{path}.pooled")
                strided = self._conv(self._conv(at, f"{path}.project"), f"{path}.strided")
                return self._plain(strided, pooled, *beside)
            case TwoBranchTransition():
                out = self._numbered(at, path, PARTS_OF_COMBINED, module.pool)
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
            return self._numbered(at, "neck.spp", PARTS_OF_CSP, *PYRAMID)
        bypass, entry = self._conv(at, "neck.spp.bypass"), self._conv(at, "neck.spp.entry")
        five, nine, thirteen = (self._plain(entry, plain=(window,)) for window in PYRAMID)
        mixed = self._conv(self._plain(thirteen, nine, five, entry), "neck.spp.mix")
        return self._conv(self._plain(mixed, bypass), "neck.spp.fuse")

    def _numbered(self, at: int, path: str, parts: tuple[str, ...], *plain: nn.Module) -> int:
        return self._parts(at, {f"cv{number}": f"{path}.{part}" for number, part in enumerate(parts, start=1)}, *plain)
