"""Priors and predictions on some of a head's levels."""

import pytest
import torch

from detloom.errors import PluginError
from detloom.structures import Predictions, Priors

STRIDES = (8, 16, 32)
SIZES_LA2 = torch.arange(12.0).reshape(3, 2, 2) + 1
SHAPES = [(4, 8), (2, 4), (1, 2)]


def numbered(priors: Priors, *, has_all: bool = True) -> Predictions:
    """Return predictions of two images whose class logits are the index of the prior."""
    index_P = torch.arange(float(priors.num_priors))
    return Predictions(
        priors.boxes_P4.expand(2, -1, 4),
        index_P.expand(2, -1)[..., None],
        index_P.expand(2, -1) if has_all else None,
        priors,
        index_P.expand(2, -1)[..., None, None].expand(-1, -1, 4, 3) if has_all else None,
    )


def test_levels_without_priors_keep_their_numbers() -> None:
    part = Priors.on_grids([None, (2, 4), (1, 2)], STRIDES, SIZES_LA2)

    assert part.num_levels == 3
    assert [(grid.level, grid.stride, grid.start) for grid in part.grids] == [(1, 16, 0), (2, 32, 16)]
    assert part.level_P.tolist() == [1] * 16 + [2] * 4
    assert part.strides_P.tolist() == [16.0] * 16 + [32.0] * 4
    assert part.sizes_P2[0].tolist() == SIZES_LA2[1, 0].tolist()


@pytest.mark.parametrize("levels", [(0,), (1,), (0, 2), (1, 2)])
@pytest.mark.parametrize("has_all", [True, False])
def test_predictions_of_some_levels_have_the_indices_of_their_priors(levels: tuple[int, ...], *, has_all: bool) -> None:
    whole = numbered(Priors.on_grids(SHAPES, STRIDES, SIZES_LA2), has_all=has_all)
    part = Priors.on_grids([SHAPES[i] if i in levels else None for i in range(3)], STRIDES, SIZES_LA2)

    found = whole.on_levels_of(part)

    is_kept_P = torch.isin(whole.priors.level_P, torch.tensor(levels))
    assert torch.equal(found.boxes_BP4, part.boxes_P4.expand(2, -1, 4))
    assert found.class_logits_BPC[0, :, 0].tolist() == is_kept_P.nonzero().flatten().tolist()
    if has_all:
        assert found.objectness_BP is not None
        assert found.distribution_BP4R is not None
        assert torch.equal(found.objectness_BP, found.class_logits_BPC[..., 0])
        assert torch.equal(found.distribution_BP4R[:, :, 3, 2], found.objectness_BP)
    else:
        assert (found.objectness_BP, found.distribution_BP4R) == (None, None)


def test_predictions_of_all_levels_are_the_same() -> None:
    whole = numbered(Priors.on_grids(SHAPES, STRIDES, SIZES_LA2))

    assert whole.on_levels_of(Priors.on_grids(SHAPES, STRIDES, SIZES_LA2)) is whole


@pytest.mark.parametrize(
    "other",
    [
        Priors.on_grids([(4, 8), (2, 4), (2, 2)], STRIDES, SIZES_LA2),
        Priors.on_grids([None, (2, 4), None], STRIDES, SIZES_LA2[:, :1]),
        Priors.on_grids([(4, 8), (2, 4), (1, 2), (1, 1)], (*STRIDES, 64), torch.ones(4, 2, 2)),
    ],
)
def test_other_priors_on_a_level_are_refused(other: Priors) -> None:
    whole = numbered(Priors.on_grids(SHAPES, STRIDES, SIZES_LA2))

    with pytest.raises(PluginError, match="auxiliary outputs must have priors as the lead ones"):
        whole.on_levels_of(other)
