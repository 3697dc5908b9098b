"""Checks of backbones and necks: pictures, or three levels, to levels.

Shape letters: B images, C channels, H and W rows and columns.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from detloom.interfaces import Neck
from detloom.shapes import shapes_only
from detloom.structures import FeatureSpec, Role
from detloom.testing.construction import Build, check_numbers, check_signature, demand

__all__ = ["BACKBONE_CHECKS", "NECK_CHECKS"]

INPUTS = (FeatureSpec(8, 8), FeatureSpec(16, 16), FeatureSpec(24, 32))
SIZE = (64, 128)


def settings_are_keyword_only_and_typed(build: Build) -> None:
    """A recipe's table is the keyword arguments of the class; the assembler gives a neck its levels."""
    check_signature(build, tuple(name for name, _ in _supplied(build)))


def numbers_without_sense_are_refused_by_name(build: Build) -> None:
    """Widths of 0 and depths of -1 are mistakes of a recipe, not of torch."""
    check_numbers(build, *(value for _, value in _supplied(build)))


def levels_are_as_out_specs_say(build: Build) -> None:
    """Channels and sizes of each level follow from ``out_specs``, for pictures of any form."""
    network = _network(build).train()
    for size in (SIZE, (96, 64)):
        _demand_specs(network, network(_given(build, size)), size)


def levels_come_finest_first(build: Build) -> None:
    """What reads the levels tells them by their order."""
    specs = _network(build).out_specs
    lead = [spec.stride for spec in specs if spec.role is Role.LEAD]
    demand(lead, "out_specs has no lead level; auxiliary ones come beside these")
    demand(
        all(fine < coarse for fine, coarse in pairwise(lead)),
        f"lead levels have strides {lead}; return the finest first, each once",
    )
    roles = [spec.role for spec in specs]
    demand(roles == sorted(roles, key=Role.AUXILIARY.__eq__), "auxiliary levels come after the lead levels")


def lead_levels_are_there_in_evaluation_mode(build: Build) -> None:
    """Auxiliary levels alone may be left out."""
    network = _network(build)
    levels = network(_given(build))
    lead = [spec for spec in network.out_specs if spec.role is Role.LEAD]
    demand(
        len(levels) in (len(lead), len(network.out_specs)),
        f"{len(levels)} levels in evaluation mode for {len(lead)} lead ones; auxiliary ones alone may be left out",
    )


def inputs_are_left_alone(build: Build) -> None:
    """An activation in place on what came in changes it for others, which read it too."""
    given = _given(build)
    _network(build)(given)
    for mine, theirs in zip(_tensors(given), _tensors(_given(build)), strict=True):
        demand(torch.equal(mine, theirs), "an input was changed in place; begin with an operation that makes a copy")


def images_do_not_affect_each_other(build: Build) -> None:
    """In evaluation mode an image alone has the levels that it has in a batch."""
    network = _network(build)
    given = _given(build)
    second = given[1:2] if isinstance(given, Tensor) else [level[1:2] for level in given]
    for together, alone in zip(network(_given(build)), network(second), strict=True):
        same = torch.allclose(together[1:2], alone, rtol=1e-3, atol=1e-4)
        demand(same, "levels of an image depend on the other images of its batch in evaluation mode")


def same_input_gives_the_same_levels(build: Build) -> None:
    """Evaluation mode knows no chance and no memory."""
    network = _network(build)
    first = network(_given(build))
    network(_given(build, (96, 64)))
    for before, after in zip(first, network(_given(build)), strict=True):
        same = torch.equal(before, after)
        demand(same, "a second run in evaluation mode gives other levels; draw nothing at random and remember nothing")


def state_is_all_in_the_state_dict(build: Build) -> None:
    """Weights travel by their names: another network that loads them computes the same."""
    network = _network(build).train()
    network(_given(build))
    network.eval()
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(1)
        twin: Any = build.cls(*(value for _, value in _supplied(build)), **build.settings).eval()
    twin.load_state_dict(network.state_dict())
    for mine, theirs in zip(network(_given(build)), twin(_given(build)), strict=True):
        demand(
            torch.equal(mine, theirs),
            "a new one with the same settings that loads the state_dict computes other levels; keep all that is random "
            "or learned in parameters and buffers",
        )


def copy_computes_the_same(build: Build) -> None:
    """The averaged model and the deployed form are copies, which keep nothing of the first."""
    network = _network(build)
    before = network(_given(build))
    twin = deepcopy(network)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    for mine, theirs in zip(before, twin(_given(build)), strict=True):
        same = torch.equal(mine, theirs)
        demand(same, "a deep copy computes other levels once the first changes; share no tensor and no method with it")


def gradients_reach_all_parameters(build: Build) -> None:
    """A parameter without a gradient never learns, and stops training over several processes."""
    network = _network(build).train()
    with torch.enable_grad():
        torch.stack([level.square().mean() for level in network(_given(build))]).sum().backward()  # type: ignore[no-untyped-call]  # torch types it not
    without = [name for name, each in network.named_parameters() if each.requires_grad and each.grad is None]
    demand(not without, f"no gradient reaches {', '.join(without[:5])}; use it, or make it a buffer")


def built_without_numbers_it_has_the_same_shapes(build: Build) -> None:
    """``detloom check`` and the counting of operations build on the meta device."""
    given = _given(build)
    moved = given.to("meta") if isinstance(given, Tensor) else [level.to("meta") for level in given]
    with shapes_only():
        network = _network(build).train()
        _demand_specs(network, network(moved), SIZE, "on the meta device ")


BACKBONE_CHECKS: tuple[Callable[[Build], None], ...] = (
    settings_are_keyword_only_and_typed,
    numbers_without_sense_are_refused_by_name,
    levels_are_as_out_specs_say,
    levels_come_finest_first,
    lead_levels_are_there_in_evaluation_mode,
    inputs_are_left_alone,
    images_do_not_affect_each_other,
    same_input_gives_the_same_levels,
    state_is_all_in_the_state_dict,
    copy_computes_the_same,
    gradients_reach_all_parameters,
    built_without_numbers_it_has_the_same_shapes,
)
NECK_CHECKS = BACKBONE_CHECKS


def _supplied(build: Build) -> list[tuple[str, Sequence[FeatureSpec]]]:
    """Return what the assembler gives the constructor, by name."""
    return [("inputs", INPUTS)] if issubclass(build.cls, Neck) else []


def _network(build: Build) -> Any:
    """Return the network in evaluation mode; a neck on three levels."""
    network: nn.Module = build(*(value for _, value in _supplied(build)))
    return network.eval()


def _given(build: Build, size: tuple[int, int] = SIZE) -> Tensor | list[Tensor]:
    """Return two pictures, or their levels."""
    generator = torch.Generator().manual_seed(4)
    if not issubclass(build.cls, Neck):
        return torch.rand(2, 3, *size, generator=generator)
    return [
        # Below 0 as well, so that an activation in place would be seen.
        torch.randn(2, spec.channels, size[0] // spec.stride, size[1] // spec.stride, generator=generator)
        for spec in INPUTS
    ]


def _tensors(given: Tensor | list[Tensor]) -> list[Tensor]:
    return [given] if isinstance(given, Tensor) else given


def _demand_specs(network: Any, levels: Sequence[Tensor], size: tuple[int, int], where: str = "") -> None:
    got = [tuple(level.shape) for level in levels]
    wanted = [(2, spec.channels, size[0] // spec.stride, size[1] // spec.stride) for spec in network.out_specs]
    demand(
        got == wanted,
        f"{where}levels have shapes {got} for 2 pictures of {size[0]} x {size[1]}, but out_specs say {wanted}; make "
        "channels and strides agree",
    )
