from typing import Any

import pytest
import torch
from torch import Tensor

from detloom.errors import RecipeError
from detloom.structures import FeatureSpec, Role
from detloom_plugins.elan_pan import ElanPanNeck
from detloom_plugins.layers import RepConv

INPUTS = (FeatureSpec(8, 8), FeatureSpec(12, 16), FeatureSpec(16, 32))
SMALL: dict[str, Any] = {"widths": [4, 6, 8], "hidden": [2, 2, 2], "outputs": [6, 8, 10]}


def levels() -> list[Tensor]:
    return [torch.rand(2, spec.channels, 64 // spec.stride, 96 // spec.stride) for spec in INPUTS]


@pytest.mark.parametrize("down", ["strided", "two-branch", "combined"])
@pytest.mark.parametrize("spp", ["tiny", "csp"])
def test_levels_have_the_widths_and_strides_that_are_announced(down: str, spp: str) -> None:
    neck = ElanPanNeck(INPUTS, **SMALL, down=down, spp=spp)  # type: ignore[arg-type] # drawn from a table

    found = neck(levels())

    assert neck.out_specs == (FeatureSpec(6, 8), FeatureSpec(8, 16), FeatureSpec(10, 32))
    assert [level.shape for level in found] == [(2, 6, 8, 12), (2, 8, 4, 6), (2, 10, 2, 3)]


def test_auxiliary_levels_come_last_and_in_training_alone() -> None:
    neck = ElanPanNeck(INPUTS, **SMALL, auxiliary=[3, 5, 7])

    training, evaluation = neck.train()(levels()), neck.eval()(levels())

    assert [spec.channels for spec in neck.out_specs if spec.role is Role.AUXILIARY] == [3, 5, 7]
    assert [level.shape[1] for level in training] == [6, 8, 10, 3, 5, 7]
    assert [level.shape[1] for level in evaluation] == [6, 8, 10]


def test_auxiliary_levels_leave_the_lead_ones_as_they_are() -> None:
    neck = ElanPanNeck(INPUTS, **SMALL, auxiliary=[3, 5, 7], branches=2).eval()
    inputs = levels()
    lead = neck(inputs)

    neck.training = True
    both = neck(inputs)

    for alone, beside in zip(lead, both[:3], strict=True):
        assert torch.equal(alone, beside)


def test_auxiliary_levels_may_be_left_out() -> None:
    whole, part = ElanPanNeck(INPUTS, **SMALL, auxiliary=[3, 5, 7]), ElanPanNeck(INPUTS, **SMALL, auxiliary=[0, 5, 0])
    state = {name: value for name, value in whole.state_dict().items() if not name.startswith("auxiliary.")}
    theirs = {name: value for name, value in whole.state_dict().items() if name.startswith("auxiliary.1.")}
    part.load_state_dict(state | {name.replace(".1.", ".0.", 1): value for name, value in theirs.items()})
    inputs = levels()

    assert part.out_specs[3:] == (FeatureSpec(5, 16, Role.AUXILIARY),)
    assert torch.equal(part.train()(inputs)[3], whole.train()(inputs)[4])


def test_auxiliary_width_of_nothing_is_no_level() -> None:
    neck = ElanPanNeck(INPUTS, **SMALL, auxiliary=[0, 0, 0]).train()

    assert (len(neck.out_specs), len(neck(levels()))) == (3, 3)


@pytest.mark.parametrize("grouped", [False, True])
def test_auxiliary_levels_read_the_last_branch_or_the_whole_sum(*, grouped: bool) -> None:
    partial = ElanPanNeck(INPUTS, **SMALL, auxiliary=[3, 5, 7], branches=2, grouped=grouped)
    whole = ElanPanNeck(INPUTS, **SMALL, auxiliary=[3, 5, 7], branches=2, grouped=grouped, partial_auxiliary=False)
    whole.load_state_dict(partial.state_dict())
    inputs = levels()
    read: dict[str, Tensor] = {}
    for name, neck in (("partial", partial), ("whole", whole)):
        neck.auxiliary[0].register_forward_pre_hook(lambda _module, args, name=name: read.update({name: args[0]}))
        neck(inputs)
    merge = partial.get_submodule("top_down.1")
    coarse = partial.get_submodule("top_down.0")(partial.spp(inputs[-1]), inputs[1])[0]

    total, last = merge(coarse, inputs[0])

    assert not torch.allclose(total, last)
    assert torch.allclose(read["partial"], last, atol=1e-6)
    assert torch.allclose(read["whole"], total, atol=1e-6)


def test_outputs_may_be_repconvs() -> None:
    neck = ElanPanNeck(INPUTS, **SMALL, output="repconv")

    assert all(isinstance(each, RepConv) for each in neck.outputs)


def test_two_levels_are_enough() -> None:
    neck = ElanPanNeck(INPUTS[1:], widths=[4, 6], hidden=[2, 2], outputs=[6, 8])

    assert [level.shape for level in neck(levels()[1:])] == [(2, 6, 4, 6), (2, 8, 2, 3)]


@pytest.mark.parametrize(
    ("inputs", "settings", "message"),
    [
        (INPUTS[:1], {}, "at least two levels"),
        ((FeatureSpec(8, 8), FeatureSpec(8, 32)), {}, r"twice the one before, got \[8, 32\]"),
        (INPUTS, {"widths": [4, 6]}, r"widths needs one value for each of the backbone's 3 levels .* got \[4, 6\]"),
        (INPUTS, {"auxiliary": [4]}, "auxiliary needs one value"),
        (INPUTS, {"auxiliary": [4, -1, 4]}, r"auxiliary must not be negative.* got \[4, -1, 4\]"),
        (INPUTS, {"spp": "big"}, "spp must be 'tiny' or 'csp', got 'big'"),
        (INPUTS, {"output": "rep"}, "output must be 'conv' or 'repconv', got 'rep'"),
        (INPUTS, {"down": "two-branch", "widths": [4, 5, 6]}, "even width, got 5"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    inputs: tuple[FeatureSpec, ...], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        ElanPanNeck(inputs, **(SMALL | settings))
