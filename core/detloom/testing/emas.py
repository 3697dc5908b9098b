"""Checks of averages of weights, on a small network with a batch norm."""

import io
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn

from detloom.errors import DetloomError
from detloom.interfaces import Ema
from detloom.testing.construction import Build, check_numbers, check_signature, demand

__all__ = ["CHECKS"]

STEPS = (1, 2, 10, 100, 10_000, 1_000_000)
# Weights are float32, and an average may be summed in another order.
TOLERANCE = 1e-5


def settings_are_keyword_only_and_typed(build: Build) -> None:
    """The model comes first; a recipe's table is the keyword arguments."""
    check_signature(build, ("model",))


def numbers_without_sense_are_refused_by_name(build: Build) -> None:
    """A decay of infinity or a ramp of no steps is a mistake of a recipe."""
    check_numbers(build, _model(0))


def decay_lies_between_0_and_1(build: Build) -> None:
    """It is a share, at any step."""
    ema: Ema = build(_model(0))
    for step in STEPS:
        decay = ema.decay_at(step)
        demand(0 <= decay <= 1, f"decay_at({step}) is {decay}; it is the share that is kept, from 0 to 1")


def first_average_is_the_model(build: Build) -> None:
    """Before any step there is nothing else to average."""
    model = _model(0)
    averaged = build(model).averaged.state_dict()
    state = model.state_dict()
    demand(averaged.keys() == state.keys(), "averaged has other entries than the model; make it a deep copy")
    for name, entry in state.items():
        demand(torch.equal(averaged[name], entry), f"averaged.{name} is not the model's before a step; copy the model")


def average_is_in_evaluation_mode_without_gradients(build: Build) -> None:
    """It is used as it is, and learns nothing itself."""
    ema: Ema = build(_model(0).train())
    ema.update(_model(1).train(), 1)
    demand(not ema.averaged.training, "averaged is in training mode; call .eval() on it")
    learning = [name for name, each in ema.averaged.named_parameters() if each.requires_grad]
    demand(not learning, f"averaged.{learning[:1]} wants a gradient; call .requires_grad_(False) on averaged")


def average_shares_nothing_with_the_model(build: Build) -> None:
    """What the optimiser does in place to the model changes no average."""
    model = _model(0)
    ema: Ema = build(model)
    before = _copied(ema.averaged)
    for entry in model.state_dict().values():
        entry.fill_(7)
    for name, entry in ema.averaged.state_dict().items():
        demand(torch.equal(entry, before[name]), f"averaged.{name} changes with the model; copy it")


def update_leaves_the_model_alone(build: Build) -> None:
    """Averaging is no part of learning."""
    model = _model(1).train()
    before = _copied(model)
    ema: Ema = build(_model(0))
    ema.update(model, 1)
    demand(model.training, "update() puts the model into evaluation mode; leave it as it is")
    demand(all(each.requires_grad for each in model.parameters()), "update() takes the model's gradients; leave them")
    for name, entry in model.state_dict().items():
        demand(torch.equal(entry, before[name]), f"update() changes the model's {name}; change averaged alone")


def update_keeps_the_share_that_decay_at_says(build: Build) -> None:
    """A new average is ``decay * average + (1 - decay) * model``; at every step nearer to the model."""
    ema: Ema = build(_model(0))
    model = _model(1)
    for step in range(1, 6):
        before, decay = _copied(ema.averaged), ema.decay_at(step)
        ema.update(model, step)
        for name, live in model.state_dict().items():
            if live.is_floating_point():
                wanted = decay * before[name] + (1 - decay) * live
                demand(
                    torch.allclose(ema.averaged.state_dict()[name], wanted, rtol=TOLERANCE, atol=TOLERANCE),
                    f"after step {step} averaged.{name} is not {decay:.6g} of itself and {1 - decay:.6g} of the model, "
                    f"as decay_at({step}) says; make update() and decay_at() agree",
                )


def average_comes_to_the_model_in_time(build: Build) -> None:
    """A model that stays where it is is what its average ends at."""
    ema: Ema = build(_model(0))
    model = _model(1)
    first = _distance(ema.averaged, model)
    for step in range(1, 301):
        ema.update(model, step)
    last = _distance(ema.averaged, model)
    demand(
        last < first,
        f"300 updates with the same model leave the average {last:.4g} away from it, {first:.4g} before; it must move "
        "towards the model",
    )


def whole_numbers_are_copied(build: Build) -> None:
    """A count of batches has no average."""
    ema: Ema = build(_model(0))
    model = _model(1)
    ema.update(model, 1)
    for name, live in model.state_dict().items():
        if not live.is_floating_point():
            own = ema.averaged.state_dict()[name]
            demand(
                torch.equal(own, live),
                f"averaged.{name} is {own.tolist()} after an update, the model's {live.tolist()}; copy whole numbers",
            )


def entries_are_matched_by_name(build: Build) -> None:
    """A model that lists its parts in another order has the same average."""
    ema: Ema = build(_model(0))
    other: Ema = build(_model(0))
    ema.update(_model(1), 1)
    other.update(_reordered(_model(1)), 1)
    for name, entry in ema.averaged.state_dict().items():
        same = torch.equal(entry, other.averaged.state_dict()[name])
        demand(same, f"averaged.{name} depends on the order in which the model lists its parts; match entries by name")


def model_with_other_entries_is_refused(build: Build) -> None:
    """Half an average is worse than an error."""
    ema: Ema = build(_model(0))
    changed = _model(1)
    del changed.head
    try:
        ema.update(changed, 1)
    except DetloomError as error:
        demand("head" in str(error), f"the message names no entry that is missing: {error}")
        return
    raise AssertionError("a model without one of the entries is averaged in silence; raise a PluginError that names it")


def resumed_average_goes_on_the_same(build: Build) -> None:
    """``averaged`` and ``state_dict`` are all that a resumed training has."""
    ema: Ema = build(_model(0))
    for step in range(1, 4):
        ema.update(_model(step), step)
    file = io.BytesIO()
    torch.save({"averaged": ema.averaged.state_dict(), "more": ema.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    again: Ema = build(_model(9))
    again.averaged.load_state_dict(state["averaged"])
    again.load_state_dict(state["more"])
    for each in (ema, again):
        each.update(_model(4), 4)
        each.update(_model(5), 5)
    for name, entry in ema.averaged.state_dict().items():
        demand(
            torch.equal(entry, again.averaged.state_dict()[name]),
            f"averaged.{name} differs after a resumption; return in state_dict() what update() remembers",
        )


CHECKS: tuple[Callable[[Build], None], ...] = (
    settings_are_keyword_only_and_typed,
    numbers_without_sense_are_refused_by_name,
    decay_lies_between_0_and_1,
    first_average_is_the_model,
    average_is_in_evaluation_mode_without_gradients,
    average_shares_nothing_with_the_model,
    update_leaves_the_model_alone,
    update_keeps_the_share_that_decay_at_says,
    average_comes_to_the_model_in_time,
    whole_numbers_are_copied,
    entries_are_matched_by_name,
    model_with_other_entries_is_refused,
    resumed_average_goes_on_the_same,
)


def _model(seed: int) -> nn.Sequential:
    """Return a small network whose weights, statistics and counts are those of a seed."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        model = nn.Sequential(OrderedDict(conv=nn.Conv2d(2, 3, 1), norm=nn.BatchNorm2d(3), head=nn.Linear(3, 2)))
        for entry in model.state_dict().values():
            if entry.is_floating_point():
                entry.copy_(torch.rand_like(entry) + 0.1)
            else:
                entry.fill_(10 + seed)
    return model


def _reordered(model: nn.Sequential) -> nn.Sequential:
    return nn.Sequential(OrderedDict(reversed(list(model.named_children()))))


def _copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: entry.clone() for name, entry in model.state_dict().items()}


def _distance(averaged: nn.Module, model: nn.Module) -> float:
    pairs = zip(averaged.parameters(), model.parameters(), strict=True)
    return float(torch.stack([(a.detach() - b.detach()).norm() for a, b in pairs]).norm())
