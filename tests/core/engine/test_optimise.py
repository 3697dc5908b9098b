"""Groups, warm-up and schedule against YOLOv7's published values."""

import pytest
import torch
from torch import nn

from detloom.assembly import assemble
from detloom.engine.optimise import Schedule, build_optimizer, parameter_groups, scaled_decay, set_rates_
from detloom.engine.settings import TrainSettings
from detloom.errors import RecipeError


class PerChannelScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, 4, 1, 1))
        self.table = nn.Parameter(torch.ones(3, 4))


def test_groups_of_yolov7_tiny_have_the_published_sizes() -> None:
    groups = parameter_groups(assemble("yolov7-tiny"))

    assert groups.sizes == (61, 58, 58)


def test_weight_of_a_convolution_to_one_channel_is_decayed() -> None:
    groups = parameter_groups(nn.Conv2d(8, 1, 1))

    assert groups.sizes == (0, 1, 1)


def test_tensor_of_one_number_a_channel_is_not_decayed() -> None:
    groups = parameter_groups(PerChannelScale())

    assert [tuple(parameter.shape) for parameter in groups.no_decay] == [(1, 4, 1, 1)]
    assert [tuple(parameter.shape) for parameter in groups.decay] == [(3, 4)]


def test_frozen_parameters_are_in_no_group() -> None:
    layer = nn.Conv2d(2, 2, 1)
    layer.weight.requires_grad = False

    assert parameter_groups(layer).sizes == (0, 0, 1)


def test_only_weights_are_decayed() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))

    optimizer = build_optimizer(model, TrainSettings(batch=16))

    assert {group["role"]: group["weight_decay"] for group in optimizer.param_groups} == {
        "no_decay": 0.0,
        "decay": 0.0005,
        "bias": 0.0,
    }
    assert optimizer.defaults["nesterov"] is True


@pytest.mark.parametrize(("batch", "decay"), [(16, 0.0005), (32, 0.0005), (64, 0.0005), (128, 0.001)])
def test_decay_grows_with_batches_beyond_the_nominal_one(batch: int, decay: float) -> None:
    assert scaled_decay(TrainSettings(batch=batch)) == pytest.approx(decay)


def test_decay_is_as_given_without_a_nominal_batch() -> None:
    assert scaled_decay(TrainSettings(batch=7, nominal_batch=0)) == 0.0005


@pytest.mark.parametrize(
    ("epoch", "rate"), [(0, 0.01), (100, 0.00775), (150, 0.0055), (200, 0.00325), (299, 0.00100025)]
)
def test_cosine_has_the_published_values(epoch: int, rate: float) -> None:
    schedule = Schedule(TrainSettings(warmup_epochs=0, warmup_min_steps=0), batches_per_epoch=10)

    assert schedule.rates_at(epoch * 10).learning_rate == pytest.approx(rate, abs=5e-9)


def test_line_ends_in_the_last_epoch() -> None:
    settings = TrainSettings(epochs=11, schedule="linear", final_fraction=0.2)

    factors = Schedule(settings, 5).factors

    assert factors == pytest.approx([1 - 0.08 * epoch for epoch in range(11)])


def test_steps_fall_at_their_epochs() -> None:
    settings = TrainSettings(epochs=6, schedule="multistep", decay_epochs=(2, 4), final_fraction=0.0)

    assert Schedule(settings, 5).factors == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_steps_without_epochs_are_refused() -> None:
    with pytest.raises(RecipeError, match="needs decay_epochs"):
        Schedule(TrainSettings(schedule="step"), 5)


def test_warm_up_lasts_for_its_epochs_or_its_least_length() -> None:
    assert Schedule(TrainSettings(), 100).warmup == 1000
    assert Schedule(TrainSettings(), 500).warmup == 1500
    assert Schedule(TrainSettings(warmup_min_steps=0), 13).warmup == 39


def test_warm_up_begins_with_high_biases_and_low_momentum() -> None:
    rates = Schedule(TrainSettings(), 100).rates_at(0)

    assert (rates.learning_rate, rates.bias_learning_rate, rates.momentum) == (0.0, 0.1, 0.8)


def test_warm_up_is_a_line() -> None:
    schedule = Schedule(TrainSettings(schedule="constant"), 100)

    rates = schedule.rates_at(500)

    assert rates.learning_rate == pytest.approx(0.005)
    assert rates.bias_learning_rate == pytest.approx(0.055)
    assert rates.momentum == pytest.approx(0.8685)


@pytest.mark.parametrize(("warmup", "nominal"), [(0, 64), (2.5, 64), (2.5, 0), (9, 64)])
def test_steps_are_those_that_the_loop_takes(warmup: float, nominal: int) -> None:
    settings = TrainSettings(epochs=5, batch=16, nominal_batch=nominal, warmup_epochs=warmup, warmup_min_steps=0)
    schedule = Schedule(settings, 11)
    taken = 0
    for epoch in range(5):
        batch = 0
        while batch < 11:
            batch += min(schedule.accumulated_at(11 * epoch + batch), 11 - batch)
            taken += 1

    assert schedule.steps == taken


def test_accumulation_ramps_up_to_the_nominal_batch() -> None:
    schedule = Schedule(TrainSettings(batch=16), 100)

    assert [schedule.accumulated_at(each) for each in (0, 100, 500, 900, 1000, 5000)] == [1, 1, 2, 4, 4, 4]


def test_rates_reach_their_groups() -> None:
    optimizer = build_optimizer(nn.Conv2d(2, 2, 1), TrainSettings())

    set_rates_(optimizer, Schedule(TrainSettings(schedule="constant"), 100).rates_at(500))

    assert {group["role"]: (group["lr"], group["momentum"]) for group in optimizer.param_groups} == {
        "decay": pytest.approx((0.005, 0.8685)),
        "bias": pytest.approx((0.055, 0.8685)),
    }


def test_adam_takes_momentum_as_its_first_beta() -> None:
    optimizer = build_optimizer(nn.Conv2d(2, 2, 1), TrainSettings(optimizer="adamw"))

    assert optimizer.param_groups[0]["betas"] == (0.937, 0.999)


def test_unknown_optimizer_gets_a_suggestion() -> None:
    with pytest.raises(RecipeError, match=r"'adamww'\. Did you mean 'adamw'"):
        build_optimizer(nn.Conv2d(2, 2, 1), TrainSettings(optimizer="adamww"))


def test_nothing_left_to_train_is_refused() -> None:
    with pytest.raises(RecipeError, match="freeze leaves nothing"):
        build_optimizer(nn.ReLU(), TrainSettings())
