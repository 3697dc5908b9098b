"""The averages of weights besides ``ramped``, and what every average promises."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from detloom.assembly import build
from detloom.engine.checkpoint import load_state, save_state
from detloom.errors import PluginError, RecipeError
from detloom.interfaces import Ema
from detloom.kinds import Kind
from detloom.workshop import workshop
from detloom_plugins.constant_ema import ConstantEma
from detloom_plugins.swa import SwaEma
from detloom_plugins.timm_ema import TimmEma

SETTINGS: dict[str, dict[str, Any]] = {"swa": {"start": 2, "every": 2}, "timm": {"update_after_step": 1}}
STEPS = 9


def average(name: str, model: nn.Module) -> Ema:
    made: Ema = build(Kind.EMA, {"use": name, **SETTINGS.get(name, {})}, model)
    return made


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3), nn.Dropout())


def train_(model: nn.Module, step: int) -> None:
    """Change every entry as a step of training might."""
    generator = torch.Generator().manual_seed(step)
    for entry in model.state_dict().values():
        if entry.is_floating_point():
            entry.add_(torch.randn(entry.shape, generator=generator))
        else:
            entry.add_(1)


def kinds() -> list[str]:
    return list(workshop().names(Kind.EMA))


@pytest.mark.parametrize("name", kinds())
def test_average_is_the_recurrence_of_its_decay(name: str) -> None:
    model = network()
    ema = average(name, model)
    expected = {key: entry.double().clone() for key, entry in model.state_dict().items()}

    for step in range(1, STEPS + 1):
        train_(model, step)
        ema.update(model, step)
        decay = ema.decay_at(step)
        assert 0 <= decay <= 1
        for key, entry in model.state_dict().items():
            expected[key] = decay * expected[key] + (1 - decay) * entry.double()

    for key, entry in ema.averaged.state_dict().items():
        if entry.is_floating_point():
            torch.testing.assert_close(entry.double(), expected[key], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", kinds())
def test_average_that_resumes_is_bit_equal(name: str, tmp_path: Path) -> None:
    model = network()
    whole = average(name, model)
    for step in range(1, STEPS + 1):
        train_(model, step)
        whole.update(model, step)
    for stop in range(STEPS):
        model = network()
        begun = average(name, model)
        for step in range(1, stop + 1):
            train_(model, step)
            begun.update(model, step)
        save_state(tmp_path / "state.safetensors", {"of": begun.averaged.state_dict(), "extra": begun.state_dict()})
        state = load_state(tmp_path / "state.safetensors")
        resumed = average(name, network())
        resumed.averaged.load_state_dict(state["of"])
        resumed.load_state_dict(state["extra"])
        for step in range(stop + 1, STEPS + 1):
            train_(model, step)
            resumed.update(model, step)

        for key, entry in whole.averaged.state_dict().items():
            assert torch.equal(entry, resumed.averaged.state_dict()[key]), (stop, key)


@pytest.mark.parametrize("name", kinds())
def test_average_neither_trains_nor_needs_gradients_nor_changes_the_model(name: str) -> None:
    model = network().train()
    ema = average(name, model)
    train_(model, 1)
    before = {key: entry.clone() for key, entry in model.state_dict().items()}

    for step in range(1, 5):
        ema.update(model, step)

    assert not any(module.training for module in ema.averaged.modules())
    assert not any(parameter.requires_grad for parameter in ema.averaged.parameters())
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(entry, before[key]) for key, entry in model.state_dict().items())
    assert ema.averaged.state_dict()["1.num_batches_tracked"] == 1


@pytest.mark.parametrize("name", kinds())
def test_entries_are_matched_by_name_and_others_are_refused(name: str) -> None:
    ema = average(name, nn.Linear(2, 2))

    with pytest.raises(PluginError, match=r"Only in the average: bias; only in the model: none"):
        ema.update(nn.Linear(2, 2, bias=False), 2)
    with pytest.raises(PluginError, match=r"weight has shape \(3, 2\), its average \(2, 2\)"):
        ema.update(nn.Linear(2, 3), 2)


@pytest.mark.parametrize("name", kinds())
def test_half_precision_is_averaged_in_float32(name: str) -> None:
    model = nn.Linear(2, 2)
    ema = average(name, model)

    ema.update(model.bfloat16(), 2)

    assert ema.averaged.state_dict()["weight"].dtype == torch.float32


def test_constant_decay_forgets_no_faster_at_first() -> None:
    ema = ConstantEma(nn.Linear(1, 1), decay=0.9)

    assert [ema.decay_at(step) for step in (1, 2, 1000)] == [0.9, 0.9, 0.9]


@pytest.mark.parametrize(("start", "every"), [(1, 1), (3, 1), (3, 2), (2, 5)])
def test_swa_is_the_plain_mean_of_the_steps_that_count(start: int, every: int) -> None:
    model = network()
    ema = SwaEma(model, start=start, every=every)
    taken = []

    for step in range(1, 21):
        train_(model, step)
        ema.update(model, step)
        weights = model.state_dict()["0.weight"].double().clone()
        if step < start:
            taken = [weights]
        elif (step - start) % every == 0:
            taken = [weights] if step == start else [*taken, weights]
        expected = torch.stack(taken).mean(0)

        torch.testing.assert_close(ema.averaged.state_dict()["0.weight"].double(), expected, rtol=1e-5, atol=1e-5)
        assert ema.needs_statistics(step) == (len(taken) > 1)


def test_swa_forgets_values_that_are_not_finite_before_it_starts() -> None:
    model = nn.Linear(1, 1, bias=False)
    ema = SwaEma(model, start=3)

    for step, value in enumerate((float("inf"), float("inf"), 2.0, 4.0), 1):
        model.weight.data.fill_(value)
        ema.update(model, step)

    assert ema.averaged.state_dict()["weight"] == 3


def test_timm_warm_up_of_power_one_is_the_mean_of_all_steps() -> None:
    model = network()
    ema = TimmEma(model, warmup_power=1.0)
    taken = []

    for step in range(1, STEPS):
        train_(model, step)
        ema.update(model, step)
        taken.append(model.state_dict()["0.weight"].double().clone())

    expected = torch.stack(taken).mean(0)
    torch.testing.assert_close(ema.averaged.state_dict()["0.weight"].double(), expected, rtol=1e-5, atol=1e-5)


def test_timm_warm_up_is_the_published_power_between_its_limits() -> None:
    ema = TimmEma(nn.Linear(1, 1), decay=0.9, min_decay=0.3, update_after_step=10, warmup_gamma=2.0, warmup_power=0.5)

    assert ema.decay_at(11) == 0
    assert ema.decay_at(12) == pytest.approx(0.3)
    assert ema.decay_at(41) == pytest.approx(1 - 16**-0.5)
    assert ema.decay_at(10_000) == pytest.approx(0.9)
    assert TimmEma(nn.Linear(1, 1), decay=0.9, use_warmup=False).decay_at(2) == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("use", "settings", "message"),
    [
        ("constant", {"decay": 1.0}, "below 1, got 1.0"),
        ("swa", {"start": 0}, "start must be at least 1"),
        ("swa", {"start": 1, "every": 0}, "every must be at least 1"),
        ("swa", {}, "start"),
        ("timm", {"decay": 0.5, "min_decay": 0.6}, r"at least min_decay \(0.6\)"),
        ("timm", {"update_after_step": -1}, "update_after_step must be at least 0"),
        ("timm", {"warmup_gamma": 0.0}, "warmup_gamma must be above 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(use: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build(Kind.EMA, {"use": use, **settings}, nn.Linear(1, 1))
