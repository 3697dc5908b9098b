"""The ELAN backbone of the YOLOv7 family, parametric in depth, width, taps and transitions.

Reference: Wang, Bochkovskiy and Liao, YOLOv7 (2022), section 3 and figure 2.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from detloom.errors import RecipeError
from detloom.hookspecs import hookimpl
from detloom.interfaces import Backbone
from detloom.structures import Extent, FeatureSpec
from detloom_plugins.e_elan import make_elan
from detloom_plugins.layers import Activation, ConvBlock, SpaceToDepth, Taps, Transition, make_transition

__all__ = ["ElanBackbone"]


class ElanBackbone(Backbone):
    """A stem, then stages of a transition and an ELAN. The defaults are those of YOLOv7-tiny.

    Args:
        stem: Kernel, stride and width of each convolution of the stem.
        space_to_depth: Start with a space-to-depth layer, which halves the size without loss.
        widths: Width of each stage's output.
        hidden: Width of each stage's entries.
        transitions: What leads into each stage: none, pool, strided, two-branch or combined.
        transition_widths: Width after each transition; empty where strided and combined ones have the stage's
            width, others that of their input.
        depth: Convolutions in each chain.
        taps: Outputs of a chain that are fused: all, or even ones.
        chain_ratio: Width of a chain over that of its entry.
        branches: Aggregations summed in each stage; 2 is extended ELAN.
        grouped: Compute the branches as one aggregation with group convolutions: the same function in another form.
        repconv: Places in each chain, from 1, whose convolution is a RepConv.
        repconv_identity: Whether those have an identity branch.
        activation: silu, leaky-relu, relu or relu6.
        out_strides: Strides of the levels that are returned.
    """

    extents: ClassVar[Mapping[str, Extent]] = {
        "stem.*.2": Extent.WIDTH,
        "widths": Extent.WIDTH,
        "transition_widths": Extent.WIDTH,
        "hidden": Extent.HIDDEN,
        "depth": Extent.DEPTH,
    }

    def __init__(
        self,
        *,
        stem: Sequence[Sequence[int]] = ((3, 2, 32), (3, 2, 64)),
        space_to_depth: bool = False,
        widths: Sequence[int] = (64, 128, 256, 512),
        hidden: Sequence[int] = (32, 64, 128, 256),
        transitions: Sequence[Transition] = ("none", "pool", "pool", "pool"),
        transition_widths: Sequence[int] = (),
        depth: int = 2,
        taps: Taps = "all",
        chain_ratio: float = 1.0,
        branches: int = 1,
        grouped: bool = False,
        repconv: Sequence[int] = (),
        repconv_identity: bool = True,
        activation: Activation = "leaky-relu",
        out_strides: Sequence[int] = (8, 16, 32),
    ) -> None:
        super().__init__()
        _check_lengths(widths, hidden, transitions, transition_widths)
        channels, stride = 3, 1
        layers: list[nn.Module] = []
        if space_to_depth:
            layers.append(SpaceToDepth())
            channels, stride = 12, 2
        for kernel, step, width in map(_stem_row, stem):
            layers.append(ConvBlock(channels, width, kernel, step, activation=activation))
            channels, stride = width, stride * step
        self.stem = nn.Sequential(*layers)
        stages: list[nn.Module] = []
        specs: list[FeatureSpec] = []
        for index, (kind, entry, width) in enumerate(zip(transitions, hidden, widths, strict=True)):
            wide = width if kind in ("strided", "combined") else channels
            between = transition_widths[index] if transition_widths else wide
            transition = make_transition(kind, channels, between, activation)
            elan = make_elan(
                between,
                width,
                hidden=entry,
                chain_ratio=chain_ratio,
                depth=depth,
                taps=taps,
                branches=branches,
                is_grouped=grouped,
                repconv=repconv,
                repconv_identity=repconv_identity,
                activation=activation,
            )
            stages.append(nn.Sequential(transition, elan))
            channels, stride = width, stride * (1 if kind == "none" else 2)
            specs.append(FeatureSpec(channels, stride))
        self.stages = nn.ModuleList(stages)
        made = {spec.stride: index for index, spec in enumerate(specs)}
        missing = [wanted for wanted in out_strides if wanted not in made]
        if missing or list(out_strides) != sorted(out_strides):
            raise RecipeError(f"out_strides must be ascending and among {sorted(made)}, got {list(out_strides)}")
        self.returned = tuple(made[wanted] for wanted in out_strides)
        self.out_specs = tuple(specs[index] for index in self.returned)

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        """Return the levels of RGB pictures with values in [0, 1]."""
        x_BCHW = self.stem(images_BCHW)
        outputs: list[Tensor] = []
        for stage in self.stages:
            x_BCHW = stage(x_BCHW)
            outputs.append(x_BCHW)
        return tuple(outputs[index] for index in self.returned)


def _check_lengths(
    widths: Sequence[int],
    hidden: Sequence[int],
    transitions: Sequence[str],
    transition_widths: Sequence[int],
) -> None:
    lengths = {"widths": len(widths), "hidden": len(hidden), "transitions": len(transitions)}
    if transition_widths:
        lengths["transition_widths"] = len(transition_widths)
    if len(set(lengths.values())) != 1:
        found = ", ".join(f"{name} has {count}" for name, count in lengths.items())
        raise RecipeError(f"each stage needs one value of each list: {found}")


def _stem_row(row: Sequence[int]) -> tuple[int, int, int]:
    if len(row) != 3:
        raise RecipeError(f"a convolution of the stem is [kernel, stride, width], got {list(row)}")
    return row[0], row[1], row[2]


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the backbone."""
    register("elan", ElanBackbone)
