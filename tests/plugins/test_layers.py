import pytest
import torch
from torch import Tensor

from detloom.errors import RecipeError
from detloom_plugins.e_elan import make_elan
from detloom_plugins.layers import (
    ConvBlock,
    Elan,
    RepConv,
    SpaceToDepth,
    SummedElan,
    make_activation,
    make_transition,
)


def maps(channels: int, size: int = 8) -> Tensor:
    return torch.rand(1, channels, size, size, generator=torch.Generator().manual_seed(0))


def test_conv_block_halves_an_odd_number_of_rows_upwards() -> None:
    block = ConvBlock(3, 4, 3, 2)

    assert block(torch.rand(2, 3, 7, 8)).shape == (2, 4, 4, 4)


def test_conv_block_has_the_published_constants_of_its_norm() -> None:
    norm = ConvBlock(3, 4).bn

    assert (norm.eps, norm.momentum) == (1e-3, 0.03)


def test_leaky_relu_has_the_published_slope() -> None:
    assert make_activation("leaky-relu")(torch.tensor([-1.0])).item() == pytest.approx(-0.1)


def test_relu6_ends_at_6() -> None:
    assert make_activation("relu6")(torch.tensor([-1.0, 5.0, 7.0])).tolist() == [0.0, 5.0, 6.0]


def test_misspelt_activation_is_refused_with_a_suggestion() -> None:
    with pytest.raises(RecipeError, match="Did you mean 'silu'"):
        make_activation("sillu")  # type: ignore[arg-type] # the mistake under test


@pytest.mark.parametrize(("taps", "depth", "fused"), [("all", 2, 4), ("all", 4, 6), ("even", 4, 4), ("even", 6, 5)])
def test_elan_fuses_its_taps_its_entry_and_its_bypass(taps: str, depth: int, fused: int) -> None:
    elan = Elan(3, 10, hidden=4, width=4, depth=depth, taps=taps)  # type: ignore[arg-type] # drawn from a table

    assert elan.fuse.conv.in_channels == 4 * fused
    assert elan(maps(3)).shape == (1, 10, 8, 8)


def test_elan_concatenates_the_deepest_tap_first_and_the_bypass_last() -> None:
    elan = Elan(3, 4, hidden=2, width=2, depth=2, taps="all").eval()
    seen: list[Tensor] = []
    elan.fuse.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))

    elan(maps(3))

    entry = elan.entry(maps(3))
    first = elan.chain[0](entry)
    expected = torch.cat((elan.chain[1](first), first, entry, elan.bypass(maps(3))), dim=1)
    assert torch.equal(seen[0], expected)


def test_even_taps_refuse_an_odd_depth() -> None:
    with pytest.raises(RecipeError, match="even depth, got 3"):
        Elan(3, 4, hidden=2, width=2, depth=3, taps="even")


def test_summed_elan_is_the_sum_of_its_branches_and_gives_the_last_alone() -> None:
    block = make_elan(3, 4, hidden=2, chain_ratio=0.5, depth=2, taps="all", branches=2, activation="silu").eval()
    assert isinstance(block, SummedElan)
    first, last = (branch(maps(3)) for branch in block.branches)

    total, partial = block.sum_and_last(maps(3))

    assert torch.equal(total, first + last)
    assert torch.equal(partial, last)
    assert torch.equal(block(maps(3)), total)


@pytest.mark.parametrize("kind", ["pool", "strided", "two-branch", "combined"])
def test_transitions_halve_the_size(kind: str) -> None:
    transition = make_transition(kind, 6, 6, "silu")  # type: ignore[arg-type] # drawn from a table

    assert transition(maps(6)).shape == (1, 6, 4, 4)


def test_pooling_cannot_change_the_width() -> None:
    with pytest.raises(RecipeError, match="keeps its 6 channels"):
        make_transition("pool", 6, 12, "silu")


def test_combined_transition_projects_to_the_width_of_its_input() -> None:
    made = [make_transition("two-branch", 6, 8, "silu"), make_transition("combined", 6, 8, "silu")]

    widths = [len(each.state_dict()["project.conv.weight"]) for each in made]

    assert widths == [4, 6]


def test_misspelt_transition_is_refused_with_a_suggestion() -> None:
    with pytest.raises(RecipeError, match="Did you mean 'strided'"):
        make_transition("stridet", 6, 6, "silu")  # type: ignore[arg-type] # the mistake under test


def test_space_to_depth_stacks_phases_down_each_column_first() -> None:
    image = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]])

    assert SpaceToDepth()(image).flatten().tolist() == [0, 2, 1, 3]


@pytest.mark.parametrize(
    ("outputs", "stride", "identity", "expected"), [(4, 1, True, True), (4, 1, False, False), (8, 1, True, False)]
)
def test_repconv_has_an_identity_where_it_can_and_may(
    *, outputs: int, stride: int, identity: bool, expected: bool
) -> None:
    block = RepConv(4, outputs, stride, identity=identity)

    assert (block.identity is not None) == expected
    assert block(maps(4)).shape == (1, outputs, 8, 8)
