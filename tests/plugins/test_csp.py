from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detloom.errors import RecipeError
from detloom.structures import FeatureSpec, Role
from detloom_plugins.csp import Bottleneck, CspBlock, repconv_chain
from detloom_plugins.csp_backbone import CspBackbone
from detloom_plugins.fpn import FpnNeck
from detloom_plugins.pan import PanNeck
from detloom_plugins.repvgg_backbone import RepVggBackbone
from detloom_plugins.vovnet import CspVovnetBackbone, PartialAggregation

LEVELS = [FeatureSpec(8, 8), FeatureSpec(12, 16), FeatureSpec(16, 32)]


def maps(specs: Sequence[FeatureSpec]) -> list[Tensor]:
    return [torch.rand(1, spec.channels, 64 // spec.stride, 96 // spec.stride) for spec in specs]


def said(specs: Sequence[FeatureSpec]) -> list[tuple[int, ...]]:
    return [(1, spec.channels, 64 // spec.stride, 96 // spec.stride) for spec in specs]


@pytest.mark.parametrize("residual", [True, False])
def test_residual_adds_the_input(*, residual: bool) -> None:
    block = Bottleneck(4, hidden=2, residual=residual).eval()
    x_BCHW = torch.rand(1, 4, 5, 5)

    found = block(x_BCHW)

    without = block.second(block.first(x_BCHW))
    torch.testing.assert_close(found, without + x_BCHW if residual else without)


def test_reversed_bottleneck_ends_in_the_small_convolution() -> None:
    block = Bottleneck(4, hidden=2, order="reduce-last")

    kernels = [each.kernel_size for each in block.modules() if isinstance(each, nn.Conv2d)]

    assert kernels == [(3, 3), (1, 1)]


def test_partial_block_fuses_chain_then_bypass() -> None:
    block = CspBlock(6, 8, depth=2).eval()
    x_BCHW = torch.rand(1, 6, 5, 5)

    found = block(x_BCHW)

    parts = torch.cat((block.chain(block.entry(x_BCHW)), block.bypass(x_BCHW)), 1)
    torch.testing.assert_close(found, block.fuse(parts))


def test_partial_block_can_be_split_after_its_entry() -> None:
    block = CspBlock(6, 8, depth=1, split="entry", transition=True).eval()
    x_BCHW = torch.rand(1, 6, 5, 5)

    found = block(x_BCHW)

    entry_BCHW = block.entry(x_BCHW)
    torch.testing.assert_close(found, block.fuse(torch.cat((block.chain(entry_BCHW), block.bypass(entry_BCHW)), 1)))


def test_aggregation_sees_half_of_its_entry_and_yields_both() -> None:
    block = PartialAggregation(4, depth=2).eval()
    x_BCHW = torch.rand(1, 4, 5, 5)

    joined, alone = block(x_BCHW)

    entry_BCHW = block.entry(x_BCHW)
    first = block.chain[0](entry_BCHW[:, 2:])
    torch.testing.assert_close(alone, block.fuse(torch.cat((block.chain[1](first), first), 1)))
    torch.testing.assert_close(joined, torch.cat((entry_BCHW, alone), 1))


@pytest.mark.parametrize(
    "backbone",
    [
        CspBackbone(stem=[[3, 1, 4]], widths=[8, 8, 16, 16], depths=[1, 1, 1, 1]),
        CspBackbone(
            stem=[[6, 2, 4]], space_to_depth=False, widths=[8, 8, 16, 16], depths=[1, 1, 1, 1], pyramid="after"
        ),
        CspBackbone(
            stem=[[3, 1, 4]],
            space_to_depth=False,
            widths=[8, 8, 8, 16, 16],
            depths=[1] * 5,
            plain_stages=2,
            transition=True,
            pyramid="none",
            out_strides=[4, 32],
        ),
        RepVggBackbone(stem=4, widths=[8, 8, 16, 16], depths=[1, 2, 1, 1]),
        RepVggBackbone(stem=4, widths=[8, 8, 16], depths=[1, 1, 1], pyramid=False, out_strides=[8, 16]),
        CspVovnetBackbone(stem=[[3, 2, 4], [3, 2, 8]]),
        CspVovnetBackbone(stem=[[3, 2, 4], [3, 2, 8]], depth=3, out_strides=[4, 8, 16, 32]),
    ],
)
def test_backbones_return_what_they_say(backbone: CspBackbone | RepVggBackbone | CspVovnetBackbone) -> None:
    levels = backbone.eval()(torch.rand(1, 3, 64, 96))

    assert [tuple(level.shape) for level in levels] == said(backbone.out_specs)


@pytest.mark.parametrize("block", ["csp", "csp-entry", "repconv"])
@pytest.mark.parametrize("upward", ["reduced", "merged"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"pyramid": True, "lateral": True}, {"enlarge": "transposed", "outputs": [4, 6, 8]}, {"depth": 2}],
)
def test_pan_returns_what_it_says(block: Any, upward: Any, settings: dict[str, Any]) -> None:
    neck = PanNeck(LEVELS, widths=[4, 6, 8], block=block, upward=upward, **settings).eval()

    levels = neck(maps(LEVELS))

    assert [tuple(level.shape) for level in levels] == said(neck.out_specs)


@pytest.mark.parametrize(
    ("count", "settings"),
    [
        (1, {"reduced": [], "outputs": [8]}),
        (2, {"reduced": [4], "outputs": [6, 8]}),
        (3, {"reduced": [4, 6], "outputs": [4, 6, 8]}),
    ],
)
def test_fpn_returns_what_it_says(count: int, settings: dict[str, Any]) -> None:
    neck = FpnNeck(LEVELS[:count], top=8, **settings).eval()

    levels = neck(maps(LEVELS[:count]))

    assert [tuple(level.shape) for level in levels] == said(neck.out_specs)


NECKS_WITH_AUXILIARY: list[Callable[[Sequence[int]], PanNeck | FpnNeck]] = [
    lambda auxiliary: PanNeck(LEVELS, widths=[4, 6, 8], pyramid=True, auxiliary=auxiliary),
    lambda auxiliary: PanNeck(LEVELS, widths=[4, 6, 8], upward="merged", outputs=[5, 6, 7], auxiliary=auxiliary),
    lambda auxiliary: FpnNeck(LEVELS, top=8, reduced=[4, 6], outputs=[4, 6, 8], auxiliary=auxiliary),
]


@pytest.mark.parametrize("make", NECKS_WITH_AUXILIARY)
@pytest.mark.parametrize("widths", [(3, 5, 7), (0, 5, 0), (3, 0, 7)])
def test_auxiliary_levels_come_last_and_in_training_alone(
    make: Callable[[Sequence[int]], PanNeck | FpnNeck], widths: tuple[int, ...]
) -> None:
    neck = make(widths).train()
    # So that the norms do not tell training from evaluation.
    for module in neck.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    inputs = maps(LEVELS)

    both = neck(inputs)
    lead = neck.eval()(inputs)

    auxiliary = [spec for spec in neck.out_specs if spec.role is Role.AUXILIARY]
    strides = [spec.stride for spec, width in zip(LEVELS, widths, strict=True) if width]
    assert [(spec.channels, spec.stride) for spec in auxiliary] == list(zip(filter(None, widths), strides, strict=True))
    assert [tuple(level.shape) for level in both] == said(neck.out_specs)
    assert len(lead) == 3
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(lead, both, strict=False))


@pytest.mark.parametrize("make", NECKS_WITH_AUXILIARY)
@pytest.mark.parametrize("widths", [[4], [4, -1, 4]])
def test_auxiliary_widths_that_cannot_be_are_refused(
    make: Callable[[Sequence[int]], PanNeck | FpnNeck], widths: list[int]
) -> None:
    with pytest.raises(RecipeError, match=r"auxiliary (needs|must not be negative)"):
        make(widths)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Bottleneck(4, hidden=4, order="reduce-frist"), "Did you mean 'reduce-first'"),  # type: ignore[arg-type] # wrong on purpose
        (lambda: CspBlock(4, 4, depth=0), "depth must be at least 1, as a CSP block has bottlenecks, got 0"),
        (lambda: CspBlock(4, 4, depth=1, split="x"), "split must be 'input' or 'entry'"),  # type: ignore[arg-type] # wrong on purpose
        (lambda: repconv_chain(4, 4, 0, "relu"), "depth must be at least 1, as a chain has RepConvs, got 0"),
        (lambda: PartialAggregation(3), "an even width, got 2, 3"),
        (lambda: CspBackbone(widths=[8], depths=[1, 1]), "widths has 1, depths 2"),
        (lambda: CspBackbone(pyramid="x"), "pyramid must be"),  # type: ignore[arg-type] # wrong on purpose
        (lambda: CspBackbone(stem=[[3, 1]]), "kernel, stride, width"),
        (lambda: CspBackbone(out_strides=[7]), r"among \[4, 8, 16, 32\], got \[7\]"),
        (lambda: RepVggBackbone(widths=[8], depths=[1, 1]), "widths has 1, depths 2"),
        (lambda: CspVovnetBackbone(stem=[]), "stem not empty"),
        (lambda: FpnNeck(LEVELS), "outputs needs 3 values and reduced 2"),
        (lambda: FpnNeck([LEVELS[0], LEVELS[2]]), r"twice the one before, got \[8, 32\]"),
        (lambda: PanNeck(LEVELS[:1]), r"at least two levels, each stride twice the one before, got \[8\]"),
        (lambda: PanNeck(LEVELS, widths=[4, 4]), r"widths needs one value for each of the backbone's 3 levels"),
        (lambda: PanNeck(LEVELS, block="x"), "block must be one of csp, csp-entry, repconv, got 'x'"),  # type: ignore[arg-type] # wrong on purpose
        (lambda: PanNeck(LEVELS, upward="x"), "upward must be one of reduced, merged"),  # type: ignore[arg-type] # wrong on purpose
    ],
)
def test_settings_that_cannot_be_used_are_named(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make()
