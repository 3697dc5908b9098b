"""Networks of a space in one: what is shared, what is mixed and where, and that each point is what it was."""

import copy
import functools
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detloom import assemble
from detloom.errors import RecipeError
from detloom.structures import HeadMaps
from detloom_plugins.elan import ElanBackbone
from detloom_plugins.repvgg_backbone import RepVggBackbone
from detloom_plugins.search.mixed import Mixed
from detloom_plugins.search.weaving import Woven, state_of, weave

NARROW = {
    "backbone.stem": [[3, 2, 4], [3, 2, 4]],
    "backbone.hidden": [4, 4, 8, 8],
    "backbone.widths": [4, 8, 8, 16],
    "neck.hidden": [4, 4, 4],
    "neck.widths": [4, 8, 8],
    "neck.outputs": [8, 8, 16],
}
REAL: dict[str, list[Any]] = {"backbone.activation": ["leaky-relu", "silu"], "head.implicit": [True, False]}


@functools.cache
def _assembled(overrides: str) -> nn.Module:
    return assemble("yolov7-tiny", {**NARROW, **json.loads(overrides)}, num_classes=2)


def detector(point: Mapping[str, Any]) -> nn.Module:
    """Return a narrow detector of a point; to assemble it takes long."""
    return copy.deepcopy(_assembled(json.dumps(point)))


def woven(choices: Mapping[str, Sequence[Any]]) -> Woven:
    return weave(
        choices, lambda point: detector(chosen(choices, point)), torch.rand(1, 3, 64, 96), indivisible=("head",)
    )


def chosen(choices: Mapping[str, Sequence[Any]], point: tuple[int, ...]) -> dict[str, Any]:
    return {key: options[place] for (key, options), place in zip(choices.items(), point, strict=True)}


@pytest.fixture(scope="module")
def real() -> Woven:
    return woven(REAL)


def backbone(**settings: Any) -> nn.Module:
    """Return a real backbone of two stages, in a network of its own."""
    levels = {"widths": (4, 8), "hidden": (4, 4), "transitions": ("none", "pool"), "out_strides": (2, 4)}
    return Holder(ElanBackbone(**{"stem": [(3, 2, 4)], **levels, **settings}))


def toy(choices: Mapping[str, Sequence[Any]], build: Callable[..., nn.Module], example: Tensor | None = None) -> Woven:
    return weave(
        choices, lambda point: build(**chosen(choices, point)), torch.rand(2, 4) if example is None else example
    )


def is_like(made: Woven, own: nn.Module, images_BCHW: Tensor) -> bool:
    """Return whether a network of its own, given the weights, does the same, also with statistics of the batch."""
    own.load_state_dict(state_of(made.network))
    pairs = [(own.train(mode)(images_BCHW), made.network.train(mode)(images_BCHW)) for mode in (True, False)]
    # Raw maps, or levels.
    return all(
        torch.equal(a, b)
        for right, found in pairs
        for a, b in zip(getattr(right, "lead", right), getattr(found, "lead", found), strict=True)
    )


class Pair(nn.Module):
    """Two layers and what is between them."""

    def __init__(self, between: nn.Module, hidden: int = 3, outputs: int = 2, first: nn.Module | None = None) -> None:
        super().__init__()
        self.first = first or nn.Linear(4, hidden)
        self.between = between
        self.last = nn.Linear(hidden, outputs)

    def forward(self, x_BI: Tensor) -> Tensor:
        out: Tensor = self.last(self.between(self.first(x_BI)))
        return out


class Holder(nn.Module):
    """A part in a part."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x_BI: Tensor) -> Tensor:
        out: Tensor = self.inner(x_BI)
        return out


def test_activations_alone_are_mixed_where_the_activation_is_a_choice(real: Woven) -> None:
    acts = [path for path, module in detector({}).named_modules() if isinstance(module, nn.LeakyReLU)]

    assert real.places["backbone.activation"] == [path for path in acts if path.startswith("backbone")]
    stem = real.network.get_submodule("backbone.stem.0.act")
    assert isinstance(stem, Mixed)
    assert [type(option) for option in stem.options] == [nn.LeakyReLU, nn.SiLU]


def test_lead_convolutions_are_mixed_where_implicit_knowledge_is_a_choice(real: Woven) -> None:
    assert real.places["head.implicit"] == [f"head.lead.{level}" for level in range(3)]


@pytest.mark.parametrize("activation", [0, 1])
@pytest.mark.parametrize("implicit", [0, 1])
def test_every_point_is_the_detector_that_is_made_of_it(real: Woven, activation: int, implicit: int) -> None:
    indices = {"backbone.activation": activation, "head.implicit": implicit}
    own = detector({key: REAL[key][index] for key, index in indices.items()})

    real.choose(indices)

    assert is_like(real, own, torch.rand(2, 3, 64, 64))


def test_blocks_are_mixed_where_their_depth_is_a_choice_and_share_what_has_the_same_shape() -> None:
    made = toy({"depth": [1, 2]}, backbone, torch.rand(1, 3, 16, 16))

    assert made.places == {"depth": ["inner.stages.0.1", "inner.stages.1.1"]}
    mixed = made.network.get_submodule("inner.stages.0.1")
    assert isinstance(mixed, Mixed)
    shallow, deep = mixed.options
    assert deep.entry is shallow.entry
    assert deep.get_submodule("chain.0") is shallow.get_submodule("chain.0")
    assert deep.get_submodule("fuse.conv") is not shallow.get_submodule("fuse.conv")
    assert deep.get_submodule("fuse.bn") is shallow.get_submodule("fuse.bn")


def test_backbones_of_different_kinds_are_mixed_whole() -> None:
    def build(*, kind: str) -> nn.Module:
        if kind == "elan":
            return backbone()
        other = RepVggBackbone(stem=4, widths=(4, 8), depths=(1, 1), out_strides=(4, 8))
        return Holder(nn.Sequential(nn.Upsample(scale_factor=2), other))

    made = toy({"kind": ["elan", "repvgg"]}, build, torch.rand(1, 3, 16, 16))

    assert made.places == {"kind": ["inner"]}


@pytest.mark.parametrize(
    "choices",
    [
        {"activation": ["relu", "silu"], "depth": [1, 2]},
        {"depth": [2, 4], "taps": ["all", "even"]},
        {"branches": [1, 2], "hidden": [(4, 4), (4, 8)]},
    ],
    ids=["one inside the other", "of one block", "of some blocks"],
)
def test_every_point_of_keys_that_change_one_place_is_its_own_network(choices: dict[str, list[Any]]) -> None:
    example = torch.rand(2, 3, 16, 16)
    made = toy(choices, backbone, example)

    for indices in itertools.product(range(2), range(2)):
        point = dict(zip(choices, indices, strict=True))
        made.choose(point)
        assert is_like(made, backbone(**{key: choices[key][index] for key, index in point.items()}), example)


def test_options_that_change_shapes_inside_are_mixed_further_out() -> None:
    made = toy({"hidden": [3, 5]}, lambda hidden: Holder(Pair(nn.ReLU(), hidden)))

    assert made.places == {"hidden": ["inner"]}


def test_a_list_of_parts_is_mixed_with_what_calls_them() -> None:
    class Chain(nn.Module):
        def __init__(self, depth: int) -> None:
            super().__init__()
            self.links = nn.ModuleList(nn.Linear(4, 4) for _ in range(depth))

        def forward(self, x_BI: Tensor) -> Tensor:
            for link in self.links:
                x_BI = link(x_BI)
            return x_BI

    made = toy({"depth": [1, 3]}, lambda depth: Holder(Chain(depth)))

    assert made.places == {"depth": ["inner"]}


def test_a_part_that_stands_twice_is_mixed_once() -> None:
    class Twice(nn.Module):
        def __init__(self, act: nn.Module) -> None:
            super().__init__()
            self.one = nn.Sequential(nn.Linear(4, 4), act)
            self.two = self.one

        def forward(self, x_BI: Tensor) -> Tensor:
            out: Tensor = self.two(self.one(x_BI))
            return out

    made = toy({"act": ["relu", "tanh"]}, lambda act: Twice(nn.ReLU() if act == "relu" else nn.Tanh()))

    assert made.network.one is made.network.two
    assert made.places == {"act": ["one.1"]}


def test_parts_are_not_shared_where_sharing_is_the_choice() -> None:
    class Towers(nn.Module):
        def __init__(self, *, shared: bool) -> None:
            super().__init__()
            self.one = nn.Sequential(nn.Linear(4, 4))
            self.two = self.one if shared else nn.Sequential(nn.Linear(4, 4))

        def forward(self, x_BI: Tensor) -> tuple[Tensor, Tensor]:
            return self.one(x_BI), self.two(x_BI)

    made = toy({"shared": [True, False]}, Towers)

    assert made.places == {"shared": ["two"]}
    made.choose({"shared": 1})
    one, two = made.network(torch.rand(1, 4))
    assert not torch.equal(one, two)


def test_a_component_may_keep_a_setting_that_it_made_its_parts_of() -> None:
    class Keeping(Pair):
        def __init__(self, *, act: str) -> None:
            super().__init__(nn.ReLU() if act == "relu" else nn.Tanh())
            self.act = act

    made = toy({"act": ["relu", "tanh"]}, lambda act: Holder(Keeping(act=act)))

    assert made.places == {"act": ["inner.between"]}


def test_a_setting_that_a_component_computes_with_makes_it_another_one() -> None:
    class Computing(Pair):
        def __init__(self, *, factor: float) -> None:
            super().__init__(nn.ReLU())
            self.factor = factor

        def forward(self, x_BI: Tensor) -> Tensor:
            return self.factor * super().forward(x_BI)

    made = toy({"factor": [1.0, 2.0]}, lambda factor: Holder(Computing(factor=factor)))

    assert made.places == {"factor": ["inner"]}
    mixed = made.network.inner
    assert isinstance(mixed, Mixed)
    assert mixed.options[0].first is mixed.options[1].first


def test_options_do_not_write_into_what_the_next_one_reads() -> None:
    made = toy({"act": ["relu", "tanh"]}, lambda act: Pair(nn.ReLU(inplace=True) if act == "relu" else nn.Tanh()))
    x_BI = torch.randn(5, 4)

    made.gates["act"].weigh(torch.tensor([0.0, 1.0]))

    expected = made.network.last(made.network.first(x_BI).tanh())  # type: ignore[operator] # a Tensor to mypy
    torch.testing.assert_close(made.network(x_BI), expected)


def test_outputs_of_several_tensors_are_summed_one_by_one() -> None:
    class Levels(nn.Module):
        def __init__(self, factor: int) -> None:
            super().__init__()
            self.factor = factor

        def forward(self, x_BI: Tensor) -> dict[str, Any]:
            return {"maps": HeadMaps((x_BI * self.factor,)), "more": [x_BI + self.factor]}

    made = toy({"factor": [1, 3]}, lambda factor: Holder(Levels(factor)))
    made.gates["factor"].weigh(torch.tensor([0.5, 0.5]))

    found = made.network(torch.ones(1, 4))

    assert found["maps"].lead[0].tolist() == [[2.0] * 4]
    assert found["more"][0].tolist() == [[3.0] * 4]


def test_keys_that_cannot_be_mixed_are_refused_together() -> None:
    with pytest.raises(RecipeError) as caught:
        woven({"assigner.use": ["yolov7", "simota"], "backbone.widths": [[4, 8, 8, 16], [4, 8, 8, 32]]})

    told = str(caught.value)
    assert "'assigner.use': 'yolov7' and 'simota' make the same network" in told
    assert "search with 'evolution'" in told
    assert "'backbone.widths': the backbone returns different shapes for its options" in told
    assert "[4, 8, 8, 16]: [1, 8, 8, 12]; [1, 8, 4, 6]; [1, 16, 2, 3]" in told
    assert "[4, 8, 8, 32]: [1, 8, 8, 12]; [1, 8, 4, 6]; [1, 32, 2, 3]" in told
    assert "Accepted are choices within backbone, neck or head" in told


def test_another_head_is_refused() -> None:
    anchors = [[[[10 + first, 13]], [[30, 61]], [[116, 90]]] for first in (0, 1)]

    with pytest.raises(RecipeError, match=r"'head.anchors': it replaces the head as a whole"):
        woven({"head.anchors": anchors})


def test_networks_of_different_parts_are_refused() -> None:
    class Optional(nn.Module):
        def __init__(self, *, more: bool) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4)
            if more:
                self.more = nn.Linear(4, 4)

        def forward(self, x_BI: Tensor) -> Tensor:
            out: Tensor = self.first(x_BI)
            return out

    with pytest.raises(RecipeError, match=r"'more': its options make networks of different parts") as caught:
        toy({"more": [False, True]}, Optional)

    assert "True: first, more" in str(caught.value)


def test_too_many_keys_of_one_place_are_refused() -> None:
    class Scaled(nn.Module):
        def __init__(self, a: int, b: int) -> None:
            super().__init__()
            self.factor = a * b + b

        def forward(self, x_BI: Tensor) -> Tensor:
            return x_BI * self.factor

    with pytest.raises(RecipeError, match=r"'a' \(6\) and 'b' \(6\) change the same module, inner.* 36 times"):
        toy({"a": range(1, 7), "b": range(1, 7)}, lambda a, b: Holder(Scaled(a, b)))


def test_a_module_that_is_more_than_its_output_is_refused() -> None:
    class Reading(Pair):
        def forward(self, x_BI: Tensor) -> Tensor:
            return super().forward(x_BI) * getattr(self.between, "factor", 1.0)

    class Factor(nn.Tanh):
        factor = 2.0

    with pytest.raises(RecipeError, match=r"'act': the supernet does not compute what the network does"):
        toy({"act": ["tanh", "factor"]}, lambda act: Reading(nn.Tanh() if act == "tanh" else Factor()))


def test_an_option_that_writes_into_what_the_others_read_is_refused() -> None:
    class Writing(nn.Module):
        def forward(self, x_BI: Tensor) -> Tensor:
            return torch.relu_(x_BI) + 1

    # Chosen alone, each option is right: the first one spoils what the second reads where both are computed.
    with pytest.raises(RecipeError, match=r"'act': the supernet does not compute.* write into what it is given"):
        toy({"act": ["writing", "tanh"]}, lambda act: Pair(Writing() if act == "writing" else nn.Tanh()))


def test_two_keys_that_change_another_place_together_are_refused() -> None:
    def build(*, a: bool, b: bool) -> nn.Module:
        first = nn.Sequential(nn.Linear(4, 3), nn.Sigmoid() if a and b else nn.Identity())
        net = nn.Sequential(first, nn.Tanh() if a else nn.ReLU(), nn.SiLU() if b else nn.ReLU())
        return Holder(net)

    with pytest.raises(RecipeError, match=r"'a' and 'b': the supernet does not compute"):
        toy({"a": [False, True], "b": [False, True]}, build)
