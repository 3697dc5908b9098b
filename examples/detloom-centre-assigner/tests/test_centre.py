"""The kit's checks, then the assigner by hand, on a grid small enough to draw."""

import pytest
import torch
from detloom_centre import CentreAssigner

from detloom.errors import RecipeError
from detloom.structures import Predictions, Priors, Targets
from detloom.testing import Check, parametrize_with_checks


@parametrize_with_checks(CentreAssigner)
def test_it_keeps_its_contract(check: Check) -> None:
    check()


def points(*strides: int, size: int = 64) -> Predictions:
    """Return predictions of an anchor-free head on a picture of a size; their values play no part."""
    priors = Priors.on_grids(
        [(size // stride, size // stride) for stride in strides],
        strides,
        torch.tensor([[[stride, stride]] for stride in strides], dtype=torch.float32),
    )
    nothing = torch.zeros(1, priors.num_priors, 4)
    return Predictions(nothing, nothing[..., :1], None, priors)


def targets(*boxes: tuple[float, float, float, float]) -> Targets:
    """Return the targets of one picture."""
    return Targets.from_lists([torch.tensor(boxes).reshape(-1, 4)], [torch.zeros(len(boxes))], (64, 64))


def test_the_cells_around_the_centre_are_taken() -> None:
    predictions = points(8)

    # The centre (36, 36) is the centre of the cell in row 4, column 4; 8 cells a row.
    result = CentreAssigner(radius=1.0).assign(predictions, targets((20, 20, 52, 52)))

    assert result.prior_M.tolist() == [27, 28, 29, 35, 36, 37, 43, 44, 45]
    assert result.target_M.tolist() == [0] * 9


def test_the_level_is_that_which_suits_the_size() -> None:
    predictions = points(8, 16)

    assigner = CentreAssigner(cells_per_side=2)
    small, large = (assigner.assign(predictions, targets(box)) for box in ((8, 8, 24, 24), (8, 8, 40, 40)))

    assert predictions.priors.level_P[small.prior_M].tolist() == [0] * small.num_matches
    assert predictions.priors.level_P[large.prior_M].tolist() == [1] * large.num_matches


def test_a_prior_between_two_targets_learns_the_nearer() -> None:
    predictions = points(8)

    # The priors of column 2 lie 8 pixels from the first centre and 12 from the second, both within reach.
    result = CentreAssigner(radius=1.5).assign(predictions, targets((4, 28, 20, 44), (24, 28, 40, 44)))

    assert len(set(result.prior_M.tolist())) == result.num_matches
    assert result.target_M[result.prior_M % 8 == 2].tolist() == [0, 0, 0]
    assert (result.target_M == 1).sum() == 9


def test_a_picture_without_objects_has_no_matches() -> None:
    assert CentreAssigner().assign(points(8), targets()).num_matches == 0


def test_a_radius_that_leaves_targets_out_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"radius must be at least 0\.5"):
        CentreAssigner(radius=0.4)
