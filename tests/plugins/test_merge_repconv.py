from collections.abc import Callable
from itertools import permutations

import pytest
import torch
from torch import Tensor, nn

from detloom.errors import PluginError
from detloom.interfaces import Fold
from detloom.reparam import fold
from detloom_plugins.fuse_bn import FuseBnPass
from detloom_plugins.layers import RepConv
from detloom_plugins.merge_repconv import MergeRepConvPass, merged_kernel

Excite = Callable[[nn.Module], nn.Module]


def picture(channels: int) -> Tensor:
    return torch.rand(2, channels, 9, 7, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "block",
    [
        RepConv(4, 6),
        RepConv(4, 6, stride=2),
        RepConv(4, 4),
        RepConv(4, 4, identity=False),
        RepConv(4, 4, stride=2),
        RepConv(4, 4, groups=2),
        RepConv(4, 4, groups=4),
        RepConv(4, 8, groups=2),
    ],
    ids=["plain", "strided", "identity", "no identity", "strided, equal widths", "groups", "depthwise", "wider groups"],
)
def test_one_convolution_equals_the_branches(block: RepConv, excite_: Excite) -> None:
    model = excite_(nn.Sequential(block))

    folded, report = fold(model, [MergeRepConvPass()], example=picture(4))

    assert list(folded.state_dict()) == ["0.conv.weight", "0.conv.bias"]
    assert max(each.absolute for each in report.outputs if each.precision == "float64") < 1e-12
    assert max(each.absolute for each in report.outputs) < 1e-5


def test_kernel_of_neutral_norms_is_the_sum_by_hand() -> None:
    block = RepConv(1, 1).eval()
    for norm in (block.bn3, block.bn1, block.identity):
        assert norm is not None
        norm.eps = 0.0
    nn.init.constant_(block.conv3.weight, 2.0)
    nn.init.constant_(block.conv1.weight, 5.0)

    kernel, bias = merged_kernel(block)

    assert kernel.squeeze().tolist() == [[2, 2, 2], [2, 2 + 5 + 1, 2], [2, 2, 2]]
    assert bias.tolist() == [0]


@pytest.mark.parametrize("passes", list(permutations([MergeRepConvPass(), FuseBnPass()])))
def test_order_with_fuse_bn_does_not_matter(passes: tuple[MergeRepConvPass | FuseBnPass, ...], excite_: Excite) -> None:
    model = excite_(nn.Sequential(RepConv(4, 4), RepConv(4, 8)))

    folded, _ = fold(model, passes, example=picture(4))

    assert sum(isinstance(each, nn.Conv2d) for each in folded.modules()) == 2
    assert not any(isinstance(each, nn.BatchNorm2d) for each in folded.modules())


def test_merged_model_has_nothing_to_merge() -> None:
    folded, _ = fold(nn.Sequential(RepConv(4, 4)), [MergeRepConvPass()])

    assert MergeRepConvPass().plan(folded) == []


def test_plan_says_what_is_added_up() -> None:
    plan = MergeRepConvPass().plan(nn.Sequential(RepConv(4, 4), RepConv(4, 8)))

    assert [(each.path, each.reason) for each in plan] == [
        ("0", "3x3 + 1x1 + identity into one 3x3"),
        ("1", "3x3 + 1x1 into one 3x3"),
    ]


class Richer(RepConv):
    """A RepConv that may do more."""


def test_repconvs_that_may_not_be_merged_stay() -> None:
    block = RepConv(4, 4)
    block.bn1 = nn.BatchNorm2d(4, track_running_stats=False)
    shared = RepConv(4, 4)

    plan = MergeRepConvPass().plan(nn.Sequential(Richer(4, 4), block, shared, shared))

    assert [(each.applies, each.reason) for each in plan] == [
        (False, "Richer may do more than a RepConv"),
        (False, "bn1 keeps no statistics, it uses those of each batch"),
        (False, "a RepConv stands in several places"),
    ]


def test_merging_draws_no_random_numbers() -> None:
    model = nn.Sequential(RepConv(4, 4))
    before = torch.get_rng_state()

    fold(model, [MergeRepConvPass()])

    assert torch.equal(torch.get_rng_state(), before)


def test_another_module_is_refused() -> None:
    with pytest.raises(PluginError, match="merge-repconv: neck is no RepConv"):
        MergeRepConvPass().fold(nn.Identity(), Fold("neck", applies=True, reason=""))
