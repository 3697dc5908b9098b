"""Gradient paths of the blocks that the papers compare, beside values counted by hand.

Each network is ``stem -> block -> head``, and the head makes the only output. Lengths count the layers on a path from
the output, the layer itself included: the head has 1.
"""

from pathlib import Path

import pytest
from block_cases import (
    BLOCKS,
    Csp,
    CspVov,
    Dense,
    ExtendedElan,
    LayerAggregation,
    Network,
    Plain,
    Residual,
    TwoElans,
    Vov,
    one_map,
)
from torch import nn

from detloom.paths.analysis import Analysis, LayerPaths, analyse
from detloom.paths.graph import PathGraph
from detloom.paths.meetings import meetings
from detloom.paths.trace import trace

PAGE = Path(__file__).parents[3] / "docs" / "gradient-paths.md"


def traced(*blocks: nn.Module) -> PathGraph:
    return trace(Network(list(blocks)), (16, 16), one_map)


def analysed(*blocks: nn.Module) -> Analysis:
    return analyse(traced(*blocks))


def layers(*blocks: nn.Module) -> dict[str, LayerPaths]:
    """Return the layers by a short name: ``chain.0`` for ``blocks.0.chain.0.0``."""
    found = analysed(*blocks).layers
    return {layer.name.removeprefix("blocks.0.").removesuffix(".0"): layer for layer in found}


def steps_and_paths(*blocks: nn.Module) -> dict[str, tuple[tuple[int, ...], int]]:
    return {name: (layer.total.steps, layer.total.paths) for name, layer in layers(*blocks).items()}


def test_plain_chain_has_one_path_that_grows_by_a_layer() -> None:
    assert steps_and_paths(Plain()) == {
        "stem": ((6,), 1),
        "chain.0": ((5,), 1),
        "chain.1": ((4,), 1),
        "chain.2": ((3,), 1),
        "chain.3": ((2,), 1),
        "head": ((1,), 1),
    }


def test_residuals_double_the_paths_and_shorten_them() -> None:
    # The second identity leads past chain.3 and chain.2, the first past chain.1 and chain.0. Head and stem alone are 2;
    # each pair that is passed through adds 2.
    assert steps_and_paths(Residual()) == {
        "stem": ((2, 4, 6), 4),
        "chain.0": ((3, 5), 2),
        "chain.1": ((2, 4), 2),
        "chain.2": ((3,), 1),
        "chain.3": ((2,), 1),
        "head": ((1,), 1),
    }


def test_dense_block_has_a_path_for_each_choice_of_layers_between() -> None:
    # Any of the layers behind one may be passed through or not: 2, 4, 8, 16 choices.
    assert steps_and_paths(Dense()) == {
        "stem": ((2, 3, 4, 5, 6), 16),
        "chain.0": ((2, 3, 4, 5), 8),
        "chain.1": ((2, 3, 4), 4),
        "chain.2": ((2, 3), 2),
        "chain.3": ((2,), 1),
        "head": ((1,), 1),
    }


def test_csp_block_has_the_dense_paths_behind_its_transition_and_one_around() -> None:
    # The dense block's paths are one layer longer, for the transition; the stem has 2 beside them, past all.
    assert steps_and_paths(Csp()) == {
        "stem": ((2, 3, 4, 5, 6, 7), 17),
        "chain.0": ((3, 4, 5, 6), 8),
        "chain.1": ((3, 4, 5), 4),
        "chain.2": ((3, 4), 2),
        "chain.3": ((3,), 1),
        "transition": ((2,), 1),
        "head": ((1,), 1),
    }


def test_vov_block_has_a_path_for_each_place_where_the_chain_is_left() -> None:
    # From the fusing layer (2) to any layer directly, or to a later one and down the chain.
    assert steps_and_paths(Vov()) == {
        "stem": ((3, 4, 5, 6, 7), 5),
        "chain.0": ((3, 4, 5, 6), 4),
        "chain.1": ((3, 4, 5), 3),
        "chain.2": ((3, 4), 2),
        "chain.3": ((3,), 1),
        "fuse": ((2,), 1),
        "head": ((1,), 1),
    }


ELAN = {
    # By the bypass 4; by the entry, which is left at chain.3, chain.1 or itself, 8, 6 or 4.
    "stem": ((4, 6, 8), 4),
    "bypass": ((3,), 1),
    "entry": ((3, 5, 7), 3),
    "chain.0": ((4, 6), 2),
    "chain.1": ((3, 5), 2),
    "chain.2": ((4,), 1),
    "chain.3": ((3,), 1),
    "fuse": ((2,), 1),
    "head": ((1,), 1),
}


def test_elan_has_a_path_for_each_tap() -> None:
    assert steps_and_paths(LayerAggregation()) == ELAN


def test_extended_elan_keeps_the_paths_of_elan() -> None:
    # Groups share their layers; shuffling and merging have none, as they move and add channels of one map.
    assert steps_and_paths(ExtendedElan()) == ELAN


def test_two_added_elans_have_the_lengths_of_one_and_twice_the_paths_and_sources() -> None:
    one, two = layers(LayerAggregation())["stem"], layers(TwoElans())["stem"]

    assert two.total.steps == one.total.steps
    assert (one.total.paths, two.total.paths) == (4, 8)
    assert (len(one.sources), len(two.sources)) == (2, 4)


@pytest.mark.parametrize(
    ("name", "sources"), [("chain.3", 1), ("chain.2", 2), ("chain.1", 3), ("chain.0", 4), ("stem", 5)]
)
def test_dense_layer_has_as_many_sources_as_its_place_from_the_loss(name: str, sources: int) -> None:
    # CSPNet, equation 2: the k-th layer is updated with the gradients of k places.
    assert len(layers(Dense())[name].sources) == sources


def test_gradient_of_the_fusing_layer_enters_a_csp_block_by_its_transition_alone() -> None:
    # CSPNet, section 3: what the two parts learn from does not overlap.
    found = layers(Csp())

    assert [name for name, layer in found.items() if "head" in layer.sources] == ["stem", "transition"]


def test_layers_that_are_fused_are_found_to_share_their_source() -> None:
    assert ("blocks.0.bypass.0", "blocks.0.chain.3.0") in analysed(LayerAggregation()).alike


def test_structures_are_told_apart() -> None:
    found = {
        name: [(each.structure, each.around) for each in meetings(traced(make()))] for name, make in BLOCKS.items()
    }

    assert found == {
        "plain": [],
        "residual": [("residual", (2, 2))] * 2,
        "dense": [("chained concatenation", (1, place)) for place in (1, 2, 3, 4)],
        # One half lies around the dense block and its transition.
        "CSP": [("chained concatenation", (1, place)) for place in (1, 2, 3, 4)] + [("chained concatenation", (1, 5))],
        "VoV": [("chained concatenation", (1, 4))],
        # chain.1 lies around two layers, the entry around two and four.
        "ELAN": [("chained concatenation", (2, 4))],
        "E-ELAN": [("chained concatenation", (2, 4))],
    }


def test_deepening_a_block_of_elan_leaves_its_shortest_path() -> None:
    # ELAN, section 3: stack within the computational block.
    stems = [layers(LayerAggregation(depth))["stem"].total for depth in (2, 4, 6, 8)]

    assert [(stem.shortest, stem.longest) for stem in stems] == [(4, 6), (4, 8), (4, 10), (4, 12)]


def test_stacking_blocks_lengthens_the_shortest_path_by_their_transition_layers() -> None:
    # ELAN, section 3: each block adds the layers that cannot be gone around; identities alone add none.
    grown = {
        name: [layers(*(make() for _ in range(blocks)))["stem"].total.shortest for blocks in (1, 2, 3)]
        for name, make in (("residual", Residual), ("VoV", Vov), ("CSPVoV", CspVov), ("ELAN", LayerAggregation))
    }

    assert grown == {"residual": [2, 2, 2], "VoV": [3, 4, 5], "CSPVoV": [4, 6, 8], "ELAN": [4, 6, 8]}


def test_one_deep_elan_has_shorter_paths_than_two_of_half_its_depth() -> None:
    deep, stacked = (
        layers(LayerAggregation(8))["stem"].total,
        layers(*(LayerAggregation() for _ in range(2)))["stem"].total,
    )

    # head, fuse, 8, entry, stem; and head, twice (fuse, 4, entry), stem.
    assert (deep.shortest, deep.longest) == (4, 12)
    assert (stacked.shortest, stacked.longest) == (6, 14)


def test_elan_has_the_shortest_longest_path_of_blocks_with_as_many_layers() -> None:
    # Seven layers each: the bypass of ELAN lies beside the others, those of the others all behind one another.
    blocks = {"plain": Plain(7), "VoV": Vov(6), "CSPVoV": CspVov(5), "CSP": Csp(6), "ELAN": LayerAggregation(4)}

    longest = {name: layers(block)["stem"].total.longest for name, block in blocks.items()}

    assert longest == {"plain": 9, "VoV": 9, "CSPVoV": 9, "CSP": 9, "ELAN": 8}


def test_table_of_the_page_is_what_is_computed() -> None:
    rows = ["| block | layers | shortest | longest | paths | steps | sources |", "|---|---|---|---|---|---|---|"]
    for name, make in BLOCKS.items():
        found = layers(make())
        stem = found["stem"].total
        steps = ", ".join(map(str, stem.steps))
        numbers = (len(found) - 2, stem.shortest, stem.longest, stem.paths, steps, len(found["stem"].sources))
        rows.append(f"| {name} | {' | '.join(map(str, numbers))} |")

    assert "\n".join(rows) in PAGE.read_text(encoding="utf-8")
