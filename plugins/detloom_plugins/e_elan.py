"""Extended ELAN in its grouped form: expand, shuffle and merge cardinality, with group convolutions.

Every computational block works on ``groups`` times the channels, each group for itself (expand). The blocks' outputs
are reordered so that all parts of a group lie together (shuffle), fused group by group, and the groups are added up
(merge). That is the sum of as many aggregations of the same input: one form can be turned into the other without loss.

Shape letters: B images, G groups, C channels of a group, H and W rows and columns.

Reference: Wang, Bochkovskiy and Liao, YOLOv7 (2022), section 3.1 and figure 2 (d).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from detloom.errors import PluginError, RecipeError
from detloom_plugins.layers import Activation, ConvBlock, Elan, SummedElan, Taps

__all__ = ["GroupedElan", "grouped", "make_elan", "objection_to_grouping", "summed"]

_ELEMENT_WISE = (nn.SiLU, nn.LeakyReLU, nn.ReLU, nn.Identity)


class GroupedElan(nn.Module):
    """Several aggregations as one, with group convolutions.

    Args:
        branches: What becomes the groups: aggregations of one form, whose tensors are copied.
    """

    def __init__(self, branches: Sequence[Elan]) -> None:
        super().__init__()
        first, groups = branches[0], len(branches)
        self.groups = groups
        self.tapped = first.tapped
        self.bypass = _stacked([each.bypass for each in branches], groups=1)
        self.entry = _stacked([each.entry for each in branches], groups=1)
        self.chain = nn.ModuleList(
            _stacked([each.chain[link] for each in branches], groups=groups) for link in range(len(first.chain))
        )
        self.fuse = _stacked([each.fuse for each in branches], groups=groups)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the merged maps."""
        return self.sum_and_last(x_BCHW)[0]

    def sum_and_last(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return the merged maps, and the last group alone, which partial auxiliary heads read."""
        bypass_BCHW = self.bypass(x_BCHW)
        entry_BCHW = self.entry(x_BCHW)
        links = []
        link_BCHW = entry_BCHW
        for conv in self.chain:
            link_BCHW = conv(link_BCHW)
            links.append(link_BCHW)
        parts = [*(links[index] for index in self.tapped), entry_BCHW, bypass_BCHW]
        shuffled_BGCHW = torch.cat([self._by_group(each) for each in parts], dim=2)
        merged_BGCHW = self._by_group(self.fuse(shuffled_BGCHW.flatten(1, 2)))
        return merged_BGCHW.sum(dim=1), merged_BGCHW[:, -1]

    def _by_group(self, x_BCHW: Tensor) -> Tensor:
        batch, channels, height, width = x_BCHW.shape
        return x_BCHW.reshape(batch, self.groups, channels // self.groups, height, width)


def make_elan(
    inputs: int,
    outputs: int,
    *,
    hidden: int,
    chain_ratio: float,
    depth: int,
    taps: Taps,
    branches: int,
    is_grouped: bool = False,
    repconv: Sequence[int] = (),
    repconv_identity: bool = True,
    activation: Activation,
) -> Elan | SummedElan | GroupedElan:
    """Return one aggregation, or extended ELAN of several; ``chain_ratio`` is the chain's width over ``hidden``."""
    if not math.isfinite(chain_ratio) or round(hidden * chain_ratio) < 1:
        raise RecipeError(f"chain_ratio must leave the chain a width: hidden {hidden} times {chain_ratio} is none")
    if branches < 1:
        raise RecipeError(f"branches must be at least 1, got {branches}")
    if is_grouped and (branches == 1 or repconv):
        raise RecipeError("grouped needs at least 2 branches, and no RepConv in their chains")
    made = [
        Elan(
            inputs,
            outputs,
            hidden=hidden,
            width=round(hidden * chain_ratio),
            depth=depth,
            taps=taps,
            repconv=repconv,
            repconv_identity=repconv_identity,
            activation=activation,
        )
        for _ in range(branches)
    ]
    if is_grouped:
        return GroupedElan(made)
    return made[0] if branches == 1 else SummedElan(made)


@torch.no_grad()
def grouped(elan: SummedElan) -> GroupedElan:
    """Return the grouped form of summed aggregations; equal, statistics of the norms included.

    Raises:
        PluginError: The branches differ in form.
    """
    objection = objection_to_grouping(elan)
    if objection:
        raise PluginError(f"these aggregations cannot become groups of one: {objection}")
    made = GroupedElan([branch for branch in elan.branches if isinstance(branch, Elan)])
    return made.train(elan.training)


@torch.no_grad()
def summed(elan: GroupedElan) -> SummedElan:
    """Return the grouped form as separate aggregations that are summed; equal, statistics included."""
    branches = [_branch(elan, group) for group in range(elan.groups)]
    return SummedElan(branches).train(elan.training)


def objection_to_grouping(elan: SummedElan) -> str:
    """Return why summed aggregations cannot become groups of one, or nothing."""
    forms = []
    for branch in elan.branches:
        if type(branch) is not Elan:
            return f"a branch is a {type(branch).__name__}, not an Elan"
        blocks = [branch.bypass, branch.entry, *branch.chain, branch.fuse]
        strange = next((said for each in blocks if (said := _objection_to_block(each))), "")
        if strange:
            return f"a branch has {strange}"
        forms.append((branch.tapped, [_form(each) for each in blocks if isinstance(each, ConvBlock)]))
    if len(forms) < 2:
        return "there is one branch alone"
    return "" if all(form == forms[0] for form in forms) else "the branches differ in form"


def _objection_to_block(block: nn.Module) -> str:
    """Return what a branch has that has no grouped form, or nothing."""
    if type(block) is not ConvBlock:
        return f"a {type(block).__name__}, not a plain convolution with its norm and activation"
    conv, norm = block.conv, block.bn
    kernel = conv.kernel_size[0]
    plain = nn.Conv2d(conv.in_channels, conv.out_channels, kernel, 1, (kernel - 1) // 2, device="meta")
    alike = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    if type(conv) is not nn.Conv2d or any(getattr(conv, each) != getattr(plain, each) for each in alike):
        return f"a {conv}, not a plain convolution that keeps the size"
    if type(norm) not in (nn.BatchNorm2d, nn.Identity):
        return f"a {type(norm).__name__} for a norm"
    if isinstance(norm, nn.BatchNorm2d) and (not norm.affine or not norm.track_running_stats):
        return "a norm without weights or without statistics"
    if type(block.act) not in _ELEMENT_WISE:
        return f"a {type(block.act).__name__}, which may not treat each value by itself"
    return ""


def _form(block: ConvBlock) -> tuple[object, ...]:
    """Return what must be the same in all branches."""
    norm, act = block.bn, block.act
    return (
        *(block.conv.weight.shape, block.conv.bias is None, type(norm), type(act)),
        getattr(act, "negative_slope", None),
        *(getattr(norm, "eps", None), getattr(norm, "momentum", None)),
    )


def _stacked(blocks: Sequence[nn.Module], *, groups: int) -> ConvBlock:
    """Return blocks as one, their outputs one after the other; with groups, their inputs too."""
    plain = [block for block in blocks if isinstance(block, ConvBlock)]
    first = plain[0]
    conv = _conv_like(
        first.conv, first.conv.in_channels * groups, torch.cat([each.conv.weight for each in plain]), groups=groups
    )
    biases = [each.conv.bias for each in plain if each.conv.bias is not None]
    if biases:
        conv.bias = nn.Parameter(torch.cat(biases))
    return _block(conv, _stacked_norm([each.bn for each in plain]), first.act)


def _stacked_norm(norms: Sequence[nn.Module]) -> nn.Module:
    batch_norms = [norm for norm in norms if isinstance(norm, nn.BatchNorm2d)]
    if not batch_norms:
        return nn.Identity()
    return _norm_like(
        batch_norms[0],
        {
            name: torch.cat([dict(_per_channel(norm))[name] for norm in batch_norms])
            for name, _ in _per_channel(batch_norms[0])
        },
    )


def _branch(elan: GroupedElan, group: int) -> Elan:
    """Return one group as an aggregation of its own."""
    made = Elan.__new__(Elan)
    nn.Module.__init__(made)
    made.tapped = elan.tapped
    made.bypass = _part(elan.bypass, group, elan.groups)
    made.entry = _part(elan.entry, group, elan.groups)
    made.chain = nn.ModuleList(_part(link, group, elan.groups) for link in elan.chain)
    made.fuse = _part(elan.fuse, group, elan.groups)
    return made


def _part(block: nn.Module, group: int, groups: int) -> ConvBlock:
    """Return the outputs of one group as a block."""
    if not isinstance(block, ConvBlock):
        raise PluginError(f"a grouped ELAN has a {type(block).__name__} where a convolution with its norm was expected")
    old = block.conv
    conv = _conv_like(old, old.in_channels // old.groups, old.weight.chunk(groups)[group].clone())
    if old.bias is not None:
        conv.bias = nn.Parameter(old.bias.chunk(groups)[group].clone())
    norm: nn.Module = nn.Identity()
    if isinstance(block.bn, nn.BatchNorm2d):
        norm = _norm_like(
            block.bn, {name: tensor.chunk(groups)[group].clone() for name, tensor in _per_channel(block.bn)}
        )
    return _block(conv, norm, block.act)


def _conv_like(old: nn.Conv2d, inputs: int, weight: Tensor, *, groups: int = 1) -> nn.Conv2d:
    """Return a convolution without bias that differs in channels alone."""
    kernel = old.kernel_size[0]
    conv = nn.Conv2d(
        inputs, len(weight), kernel, old.stride[0], (kernel - 1) // 2, groups=groups, bias=False, device="meta"
    )
    conv.weight = nn.Parameter(weight)
    return conv


def _block(conv: nn.Conv2d, norm: nn.Module, act: nn.Module) -> ConvBlock:
    made = ConvBlock.__new__(ConvBlock)
    nn.Module.__init__(made)
    made.conv = conv
    made.bn = norm  # type: ignore[assignment] # an identity once the norm is fused
    made.act = act
    return made


def _per_channel(norm: _BatchNorm) -> list[tuple[str, Tensor]]:
    tensors = {
        "weight": norm.weight,
        "bias": norm.bias,
        "running_mean": norm.running_mean,
        "running_var": norm.running_var,
    }
    return [(name, tensor) for name, tensor in tensors.items() if tensor is not None]


def _norm_like(norm: nn.BatchNorm2d, tensors: dict[str, Tensor]) -> nn.BatchNorm2d:
    channels = len(tensors["running_mean"])
    made = nn.BatchNorm2d(channels, eps=norm.eps, momentum=norm.momentum, device="meta")
    made.weight, made.bias = nn.Parameter(tensors["weight"]), nn.Parameter(tensors["bias"])
    made.running_mean, made.running_var = tensors["running_mean"], tensors["running_var"]
    counted = norm.num_batches_tracked
    made.num_batches_tracked = None if counted is None else counted.clone()
    return made
