import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from detloom.assembly import assemble
from detloom.decode_spec import DecodeSpec
from detloom.errors import PluginError
from detloom.interfaces import Fold, Head, ReparamPass
from detloom.ops.maps import whole_maps
from detloom.reparam import fold
from detloom.structures import FeatureSpec, HeadMaps, HeadTraits, Predictions, Role
from detloom_plugins.anchor_head import AnchorHead
from detloom_plugins.decoupled_head import DecoupledHead
from detloom_plugins.distribution_head import DistributionHead
from detloom_plugins.drop_auxiliary import DropAuxiliaryPass
from detloom_plugins.fold_implicit import FoldImplicitPass
from detloom_plugins.fuse_bn import FuseBnPass
from detloom_plugins.one_to_one_head import OneToOneHead
from detloom_plugins.raw_outputs import BranchedHead, RawOutputsPass

LEVELS = (FeatureSpec(8, 8), FeatureSpec(12, 16), FeatureSpec(16, 32))
AUXILIARY = tuple(replace(each, role=Role.AUXILIARY) for each in LEVELS)
PLAIN: dict[str, Callable[[], Head]] = {
    "anchor": lambda: AnchorHead(LEVELS, 2, implicit=False),
    "anchor, no objectness": lambda: AnchorHead(LEVELS, 2, implicit=False, objectness=False),
    "decoupled": lambda: DecoupledHead(LEVELS, 2, width=8, depth=1),
    "decoupled, no objectness": lambda: DecoupledHead(LEVELS, 2, width=8, depth=1, objectness=False),
    "distribution": lambda: DistributionHead(LEVELS, 2, width=8),
}


class OnLevels(nn.Module):
    """A head on levels of a picture, so that pictures can be put in."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.head = head
        self.levels = nn.ModuleList(nn.Conv2d(3, spec.channels, 1, spec.stride) for spec in LEVELS)

    def forward(self, images_BCHW: Tensor) -> HeadMaps:
        maps: HeadMaps = self.head([level(images_BCHW) for level in self.levels])
        return maps


def levels() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, s.channels, 64 // s.stride, 96 // s.stride, generator=generator) for s in LEVELS]


def whole(model: nn.Module, images_BCHW: Tensor) -> tuple[Tensor, ...]:
    """Return one map of each level."""
    assert isinstance(model, OnLevels)
    return whole_maps(model.head.decode_spec(), model(images_BCHW).lead)


def split(head: Head) -> BranchedHead:
    """Return the head with a map for each branch, proved equal."""
    model, report = fold(OnLevels(head), [RawOutputsPass()], example=torch.rand(2, 3, 64, 96), run=whole)
    assert isinstance(model.head, BranchedHead)
    # A convolution of fewer channels may add in another order.
    assert max(each.relative for each in report.modules if each.precision == "float64") < 1e-14
    assert [each.fold.path for each in report.folds if each.fold.applies] == ["head"]
    return model.head


def operations(head: BranchedHead) -> list[str]:
    """Return what the forward calls, other than modules."""
    assert isinstance(head.network, fx.GraphModule)
    return [
        getattr(node.target, "__name__", str(node.target))
        for node in head.network.graph.nodes
        if node.op in ("call_function", "call_method")
    ]


@pytest.mark.parametrize("name", PLAIN)
def test_each_branch_has_a_map_made_by_a_convolution_of_its_own(name: str) -> None:
    head = PLAIN[name]().eval()

    made = split(head)

    with torch.no_grad():
        maps, expected = made(levels()).lead, head(levels()).lead
    spec = made.decode_spec()
    branches = len(spec["outputs"]) - (spec["outputs"][0]["name"] == "center")
    assert len(maps) == 3 * branches
    assert operations(made) == []
    torch.testing.assert_close(whole_maps(spec, maps), expected)


@pytest.mark.parametrize("name", PLAIN)
def test_predictions_are_the_same(name: str) -> None:
    head = PLAIN[name]().eval()

    made = split(head)

    with torch.no_grad():
        found, expected = made.decode(made(levels()).lead), head.decode(head(levels()).lead)
    torch.testing.assert_close(found.boxes_BP4, expected.boxes_BP4)
    torch.testing.assert_close(found.class_logits_BPC, expected.class_logits_BPC)
    torch.testing.assert_close(found.objectness_BP, expected.objectness_BP)


def test_channels_of_anchors_are_gathered_anchor_by_anchor() -> None:
    head = AnchorHead(LEVELS, 2, implicit=False).eval()

    made = split(head)

    with torch.no_grad():
        boxes_BCHW, objectness_BCHW, classes_BCHW = made(levels()).lead[:3]
        raw_BAOHW = head(levels()).lead[0].unflatten(1, (3, 7))
    torch.testing.assert_close(boxes_BCHW, raw_BAOHW[:, :, :4].flatten(1, 2))
    torch.testing.assert_close(objectness_BCHW, raw_BAOHW[:, :, 4])
    torch.testing.assert_close(classes_BCHW, raw_BAOHW[:, :, 5:].flatten(1, 2))


def test_spec_says_what_each_map_holds_and_is_plain_data() -> None:
    head = AnchorHead(LEVELS, 2, implicit=False)
    before = head.decode_spec()

    spec = split(head).decode_spec()

    assert json.loads(json.dumps(spec)) == {
        **before,
        "maps": [
            {"level": level, "outputs": outputs}
            for level in range(3)
            for outputs in (["center", "size"], ["objectness"], ["classes"])
        ],
    }


def test_weights_are_those_of_the_head_and_no_more() -> None:
    head = DecoupledHead(LEVELS, 2, width=8, depth=1)

    made = split(head)

    assert sum(each.numel() for each in made.state_dict().values()) == sum(
        e.numel() for e in head.state_dict().values()
    )
    assert list(made.decoder.state_dict()) == []
    assert made.network.get_submodule("lead.0.stem.bn") is not None


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (lambda: AnchorHead(LEVELS, 2), "fold-implicit comes first"),
        (lambda: AnchorHead((*LEVELS, *AUXILIARY), 2, implicit=False), "drop-auxiliary comes first"),
        (lambda: OneToOneHead(LEVELS, 2, width=8), "drop-auxiliary comes first"),
        (lambda: Third(lambda x: x if x.sum() > 0 else -x), "its forward cannot be read"),
        (lambda: Third(lambda x: x, whole=False), "it returns no HeadMaps whose lead maps can be followed"),
        (lambda: Third(lambda x: x, outputs=("classes",)), "it has one branch"),
    ],
    ids=["implicit", "auxiliary", "one-to-many", "unreadable", "no maps", "one branch"],
)
def test_head_that_cannot_be_split_is_left_with_the_reason(head: Callable[[], Head], reason: str) -> None:
    (place,) = RawOutputsPass().plan(OnLevels(head()))

    assert not place.applies
    assert reason in place.reason


class Third(Head):
    """A head of somebody else's: one convolution a level, and something done to its maps."""

    def __init__(
        self,
        way: Callable[[Any], Any],
        *,
        whole: bool = True,
        outputs: Sequence[str] = ("distances", "classes"),
        convs: Sequence[nn.Module] = (),
    ) -> None:
        super().__init__()
        self.num_classes = 2
        self.traits = HeadTraits(anchors=False, objectness=False, levels=3)
        self.way = way
        self.whole = whole
        self.outputs = tuple(outputs)
        self.last = nn.ModuleList(convs or [nn.Conv2d(spec.channels, 6, 1) for spec in LEVELS])

    def forward(self, features: Sequence[Tensor]) -> HeadMaps:
        maps = tuple(self.way(conv(level)) for conv, level in zip(self.last, features, strict=True))
        return HeadMaps(maps) if self.whole else maps  # type: ignore[return-value] # what it does wrong

    def decode(self, maps: Sequence[Tensor]) -> Predictions:
        raise NotImplementedError

    def decode_spec(self) -> DecodeSpec:
        sizes = {"distances": 4, "classes": 2}
        return {
            "num_classes": 2,
            "levels": [{"stride": spec.stride, "priors": [[8.0, 8.0]]} for spec in LEVELS],
            "outputs": [{"name": name, "channels": sizes[name]} for name in self.outputs],  # type: ignore[typeddict-item] # names of the words
            "box": {"form": "distances", "bins": 1},
            "score": ["classes"],
            "suppression": True,
        }


def test_maps_that_no_convolution_makes_are_sliced() -> None:
    made = split(Third(lambda x: x.tanh()))

    assert operations(made) == ["tanh", "narrow", "narrow"] * 3
    assert [each.shape[1] for each in made(levels()).lead] == [4, 2] * 3


def test_concatenation_across_branches_is_cut_where_they_meet() -> None:
    made = split(Third(lambda x: torch.cat((x[:, :3].tanh(), x[:, 3:]), dim=1)))

    assert [each.shape[1] for each in made(levels()).lead] == [4, 2] * 3


def test_convolution_whose_output_is_read_twice_stays_whole() -> None:
    made = split(Third(lambda x: torch.cat((x, x.tanh()), dim=1)[:, :6]))

    assert len([each for each in made.modules() if isinstance(each, nn.Conv2d)]) == 3


def test_grouped_convolution_stays_whole() -> None:
    convs = [nn.Conv2d(spec.channels, 6, 1, groups=2) for spec in LEVELS]

    made = split(Third(lambda x: x, convs=convs))

    assert operations(made) == ["narrow", "narrow"] * 3


def test_last_convolution_inside_a_part_is_split() -> None:
    convs = [nn.Sequential(nn.ReLU(), nn.Conv2d(spec.channels, 6, 1)) for spec in LEVELS]

    made = split(Third(lambda x: x, convs=convs))

    assert operations(made) == []
    assert sorted(name for name, _ in made.network.named_parameters())[:2] == [
        "last.0.1.classes.bias",
        "last.0.1.classes.weight",
    ]


def test_shared_convolution_is_left_with_the_reason() -> None:
    conv = nn.Conv2d(8, 6, 1)
    (place,) = RawOutputsPass().plan(Third(lambda x: x, convs=[conv, conv, conv]))

    assert (place.applies, place.reason) == (False, "a Conv2d stands in several places")


@pytest.mark.parametrize("head", ["anchor", "one-to-one"])
def test_deployed_detector_predicts_the_same(head: str, excite_: Callable[[nn.Module], nn.Module]) -> None:
    other = {"head.use": head, "assigner.use": "hungarian", "criterion.use": "quality-focal"}
    detector = assemble("demo", {} if head == "anchor" else other, num_classes=3)
    excite_(detector)

    folded, report = fold(detector, [*detector.passes, RawOutputsPass()], example=torch.rand(1, 3, 64, 64))

    assert len(folded(torch.rand(1, 3, 64, 64)).lead) == (6 if head == "one-to-one" else 9)
    assert {each.where for each in report.outputs} == {
        *(f"output.maps.lead.{level}" for level in range(3)),
        "output.boxes_in_cells",
    }
    assert not any(each.applies for each in RawOutputsPass().plan(folded))


@pytest.mark.parametrize("passes", list(permutations([RawOutputsPass(), FuseBnPass()])))
def test_order_with_fuse_bn_does_not_matter(
    passes: tuple[ReparamPass, ...], excite_: Callable[[nn.Module], nn.Module]
) -> None:
    model = excite_(OnLevels(DecoupledHead(LEVELS, 2, width=8, depth=1)))

    folded, _ = fold(model, passes, example=torch.rand(1, 3, 64, 64), run=whole)

    assert not any(isinstance(each, nn.BatchNorm2d) for each in folded.modules())
    assert "head.network.lead.0.stem.conv.bias" in folded.state_dict()


def test_training_form_is_folded_first() -> None:
    passes = [FoldImplicitPass(), DropAuxiliaryPass(), RawOutputsPass()]

    _, report = fold(AnchorHead(LEVELS, 2), passes)

    assert [each.fold.applies for each in report.folds] == [True, True, True, True]


class Wrong(RawOutputsPass):
    """Split right, and add a little to the classes."""

    def fold(self, module: nn.Module, fold: Fold) -> nn.Module:
        made = super().fold(module, fold)
        for name, parameter in made.named_parameters():
            if name.endswith("classes.bias"):
                parameter.data += 1e-3
        return made


def test_wrong_map_is_found_though_there_are_more_maps_than_before() -> None:
    with pytest.raises(PluginError, match=r"folding changed the module head: in float64 it differs by 0.001"):
        fold(OnLevels(AnchorHead(LEVELS, 2, implicit=False)), [Wrong()], example=torch.rand(1, 3, 64, 64), run=whole)
