import pytest
import torch
from torch import Tensor

from detloom.errors import RecipeError
from detloom.structures import FeatureSpec, Role
from detloom_plugins.distribution_head import DistributionHead, logits_of_mean

LEAD = (FeatureSpec(4, 8), FeatureSpec(6, 16))
AUXILIARY = (FeatureSpec(3, 8, Role.AUXILIARY), FeatureSpec(5, 16, Role.AUXILIARY))
BINS = 5


def levels(specs: tuple[FeatureSpec, ...] = LEAD) -> list[Tensor]:
    return [torch.rand(2, spec.channels, 32 // spec.stride, 48 // spec.stride) for spec in specs]


def head(specs: tuple[FeatureSpec, ...] = LEAD, *, width: int = 8, prior_scale: float = 4.0) -> DistributionHead:
    return DistributionHead(specs, 3, width=width, bins=BINS, prior_scale=prior_scale)


def zeros(batch: int = 1) -> list[Tensor]:
    return [torch.zeros(batch, 4 * BINS + 3, 4, 6), torch.zeros(batch, 4 * BINS + 3, 2, 3)]


def test_maps_have_one_prediction_a_cell() -> None:
    assert [each.shape for each in head()(levels()).lead] == [(2, 23, 4, 6), (2, 23, 2, 3)]


def test_auxiliary_maps_exist_in_training_alone() -> None:
    made = head(LEAD + AUXILIARY)

    training = made.train()(levels(LEAD + AUXILIARY))
    evaluation = made.eval()(levels())

    assert [each.shape for each in training.auxiliary] == [(2, 23, 4, 6), (2, 23, 2, 3)]
    assert evaluation.auxiliary == ()


def test_neck_without_auxiliary_levels_is_served_in_training_too() -> None:
    maps = head(LEAD + AUXILIARY).train()(levels())

    assert (len(maps.lead), maps.auxiliary) == (2, ())


def test_a_side_lies_at_the_mean_of_its_distribution_in_strides() -> None:
    maps = zeros()
    logits_4R = torch.full((4, BINS), -200.0)
    # Left: bin 0; top: halfway between 1 and 2; right: bin 4; bottom: all alike.
    logits_4R[0, 0] = logits_4R[1, 1] = logits_4R[1, 2] = logits_4R[2, 4] = 0
    logits_4R[3] = 7.0
    maps[1][0, : 4 * BINS, 1, 2] = logits_4R.flatten()

    predictions = head().decode(maps)

    center_x, center_y = 2.5 * 16, 1.5 * 16
    expected = [center_x, center_y - 1.5 * 16, center_x + 4 * 16, center_y + 2 * 16]
    assert predictions.boxes_BP4[0, 4 * 6 + 1 * 3 + 2].tolist() == pytest.approx(expected)


def test_distribution_and_classes_are_those_of_the_cell() -> None:
    maps = zeros()
    maps[0][0, :, 2, 3] = torch.arange(23.0)

    predictions = head().train().decode(maps)

    assert predictions.objectness_BP is None
    assert predictions.distribution_BP4R is not None
    assert predictions.distribution_BP4R[0, 2 * 6 + 3].flatten().tolist() == list(range(20))
    assert predictions.class_logits_BPC[0, 2 * 6 + 3].tolist() == [20, 21, 22]


def test_distribution_is_handed_on_in_training_alone() -> None:
    made = head()

    assert made.traits.distribution_bins == BINS
    assert made.train().decode(zeros()).distribution_BP4R is not None
    assert made.eval().decode(zeros()).distribution_BP4R is None


def test_wild_logits_stay_within_the_bins() -> None:
    maps = [torch.randn_like(each) * 1e6 for each in zeros()]

    boxes_BP4 = head().decode(maps).boxes_BP4

    assert boxes_BP4.isfinite().all()
    assert (boxes_BP4[..., 2:] - boxes_BP4[..., :2]).min() >= 0


def test_predictions_are_float32_whatever_the_maps_are_and_under_autocast() -> None:
    maps = [torch.randn_like(each) for each in zeros()]
    expected = head().decode([each.bfloat16().float() for each in maps])

    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = head().decode([each.bfloat16() for each in maps])

    assert found.boxes_BP4.dtype == found.class_logits_BPC.dtype == torch.float32
    assert torch.equal(found.boxes_BP4, expected.boxes_BP4)


@pytest.mark.parametrize(("bins", "mean"), [(17, 2.0), (17, 8.0), (2, 0.9), (17, 15.5), (17, 0.05)])
def test_logits_have_the_mean_asked_for(bins: int, mean: float) -> None:
    weights_R = torch.tensor(logits_of_mean(bins, mean)).softmax(0)

    assert (weights_R * torch.arange(bins)).sum().item() == pytest.approx(mean, rel=1e-4)


def test_boxes_start_as_their_priors_and_scores_start_rare() -> None:
    made = head(prior_scale=3.0).eval()
    for module in made.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.zeros_(module.weight)

    predictions = made.decode(made(levels()).lead)

    torch.testing.assert_close(predictions.boxes_BP4[0], predictions.priors.boxes_P4)
    assert predictions.priors.sizes_P2[[0, -1]].tolist() == [[24, 24], [48, 48]]
    torch.testing.assert_close(predictions.class_logits_BPC.sigmoid(), torch.full((2, 30, 3), 0.01))


def test_width_of_nothing_is_that_of_each_level() -> None:
    state = head(width=0).state_dict()

    assert [state[f"lead.{level}.stem.conv.weight"].shape[0] for level in (0, 1)] == [4, 6]


@pytest.mark.parametrize(
    ("num_classes", "settings", "message"),
    [
        (0, {}, "num_classes must be at least 1, got 0"),
        (3, {"bins": 1}, "bins must be at least 2, got 1; published is 17"),
        (3, {"prior_scale": 0.0}, "prior_scale must lie between 0 and the 32 cells that 17 bins span, got 0.0"),
        (3, {"prior_scale": 8.0, "bins": 5}, "between 0 and the 8 cells that 5 bins span, got 8.0"),
    ],
)
def test_settings_that_cannot_be_are_refused(num_classes: int, settings: dict[str, float], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        DistributionHead(LEAD, num_classes, **settings)  # type: ignore[arg-type] # one table for settings of two types


def test_auxiliary_levels_of_other_strides_are_refused() -> None:
    with pytest.raises(RecipeError, match="auxiliary levels must have the strides of lead levels"):
        head((*LEAD, FeatureSpec(8, 128, Role.AUXILIARY)))
