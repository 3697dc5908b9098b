import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from detloom.errors import PluginError, RecipeError
from detloom_plugins.ramped_ema import RampedEma


@pytest.mark.parametrize("seed", range(4))
def test_averages_are_the_published_ones(seed: int, shared: Callable[[str], Path]) -> None:
    golden = np.load(shared(f"golden/ema/ema-seed{seed}.npz"))
    model = nn.Sequential(nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3))
    conv, norm = model[0], model[1]
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    conv.weight.data = torch.from_numpy(golden["start_weight"]).clone()
    ema = RampedEma(model)

    for step, (weight, mean) in enumerate(zip(golden["weights"], golden["running_means"], strict=True), start=1):
        conv.weight.data = torch.from_numpy(weight)
        norm.running_mean.data = torch.from_numpy(mean)
        ema.update(model, int(golden["start_updates"]) + step)

    state = ema.averaged.state_dict()
    np.testing.assert_allclose(state["0.weight"], golden["final_weight"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(state["1.running_mean"], golden["final_running_mean"], rtol=1e-5, atol=1e-6)
    decays = [ema.decay_at(int(golden["start_updates"]) + step) for step in range(1, 51)]
    np.testing.assert_allclose(decays, golden["decay"], rtol=1e-9)


def test_decay_ramps_up() -> None:
    ema = RampedEma(nn.Linear(1, 1), decay=0.5, ramp=10)

    assert ema.decay_at(10) == pytest.approx(0.5 * (1 - math.exp(-1)))


def test_integer_entries_are_those_of_the_model() -> None:
    model = nn.BatchNorm1d(2)
    ema = RampedEma(model)
    model(torch.rand(4, 2))

    ema.update(model, 1)

    assert ema.averaged.state_dict()["num_batches_tracked"] == 1


def test_average_neither_trains_nor_needs_gradients() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).train()

    ema = RampedEma(model)

    assert not ema.averaged.training
    assert not any(parameter.requires_grad for parameter in ema.averaged.parameters())
    assert model.training


def test_update_leaves_the_model_as_it_is() -> None:
    model = nn.Linear(2, 2)
    before = model.weight.detach().clone()
    ema = RampedEma(nn.Linear(2, 2))

    ema.update(model, 5)

    assert torch.equal(model.weight, before)


def test_model_of_half_precision_is_averaged_in_float32() -> None:
    model = nn.Linear(2, 2)
    ema = RampedEma(model)

    ema.update(model.bfloat16(), 1)

    assert ema.averaged.state_dict()["weight"].dtype == torch.float32


def test_another_model_is_refused_by_name() -> None:
    ema = RampedEma(nn.Linear(2, 2))

    with pytest.raises(PluginError, match=r"Only in the average: bias; only in the model: none"):
        ema.update(nn.Linear(2, 2, bias=False), 1)
    with pytest.raises(PluginError, match=r"weight has shape \(3, 2\), its average \(2, 2\)"):
        ema.update(nn.Linear(2, 3), 1)


@pytest.mark.parametrize(("settings", "message"), [({"decay": 1.0}, "below 1, got 1.0"), ({"ramp": 0}, "at least 1")])
def test_settings_that_cannot_be_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        RampedEma(nn.Linear(1, 1), **settings)  # type: ignore[arg-type] # the mistake under test
