"""Who learns when in a supernet, what a draw costs, and that the right option is found."""

from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detloom import load_recipe
from detloom.data.loader import Batch
from detloom.structures import Targets
from detloom_plugins.search.alternation import AlternatingBatches
from detloom_plugins.search.learning import LogitSettings, learn, supernet_recipe
from detloom_plugins.search.supernet import Cost, Plan, Supernet, gumbel
from detloom_plugins.search.weaving import Woven, weave

LOGITS = LogitSettings(learning_rate=0.05, weight_decay=0.0, warm_share=0.34, temperature=5.0, final_temperature=0.1)
TURNS = 10


class Absolute(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.abs()


class Zero(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 0 * x


OPTIONS = {"identity": nn.Identity, "zero": Zero, "absolute": Absolute}


class Grey(nn.Module):
    """Learns how far a grey is from the middle one, which needs an absolute value: the rest of it is linear."""

    def __init__(self, between: str) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.between = OPTIONS[between]()
        self.last = nn.Conv2d(8, 1, 1)

    def forward(self, images_BCHW: Tensor, targets: Targets | None = None) -> Any:
        found_B1HW = self.last(self.between(self.first(images_BCHW - 0.5)))
        if targets is None:
            return found_B1HW
        right_B1HW = 4 * (images_BCHW.mean(1, keepdim=True) - 0.5).abs()
        return {"error": (found_B1HW - right_B1HW).square().mean()}


class Greys:
    """Batches of pictures of one grey each."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __len__(self) -> int:
        return TURNS

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        for position in range(start_batch, TURNS):
            generator = torch.Generator().manual_seed(1000 * self.seed + 100 * epoch + position)
            grey_B111 = torch.randint(0, 256, (32, 1, 1, 1), generator=generator, dtype=torch.uint8)
            targets = Targets.from_lists([torch.zeros(0, 4)] * 32, [torch.zeros(0, dtype=torch.int64)] * 32, (2, 2))
            yield Batch(grey_B111.expand(32, 3, 2, 2).contiguous(), targets, tuple(range(32)))


def woven(seed: int = 0) -> Woven:
    names = list(OPTIONS)
    return weave({"between": names}, lambda point: Grey(names[point[0]]), torch.rand(1, 3, 2, 2), seed=seed)


def supernet(cost: Cost | None = None) -> Supernet:
    return Supernet(woven(), Plan(turns=8, warm=2, temperature=5.0, final_temperature=0.1, seed=0), cost)


def losses(net: Supernet, turn: int) -> dict[str, Tensor]:
    net.begin_turn(turn)
    batch = next(Greys(0).epoch(0))
    found: dict[str, Tensor] = net.train()(batch.images_BCHW.float() / 255, batch.targets)
    return found


def learned(directory: Path, seed: int, epochs: int = 5) -> Supernet:
    overrides = {
        "train.seed": seed,
        "train.learning_rate": 0.05,
        "train.warmup_epochs": 0,
        "train.weight_decay": 0.0,
        # After each step, so that what is killed goes on from the middle of an epoch.
        "train.checkpoint_minutes": 1e-6,
    }
    recipe = supernet_recipe(load_recipe("yolov7-tiny-small-data", overrides), epochs)
    return learn(
        woven(seed),
        (Greys(2 * seed), Greys(2 * seed + 1)),
        recipe=recipe,
        logits=LOGITS,
        cost=None,
        data="greys",
        names=("grey",),
        directory=directory,
    )[0]


def test_weights_alone_have_gradients_in_their_turn() -> None:
    net = supernet()

    losses(net, turn=4)["error"].backward()  # type: ignore[no-untyped-call] # torch types it not

    assert net.network.get_parameter("first.weight").grad is not None
    assert net.logits[0].grad is None


def test_logits_alone_have_gradients_in_theirs() -> None:
    net = supernet()

    losses(net, turn=5)["error"].backward()  # type: ignore[no-untyped-call] # torch types it not

    assert all(each.grad is None for each in net.network.parameters())
    assert net.logits[0].grad is not None
    assert net.logits[0].grad.abs().sum() > 0


def test_weights_learn_alone_in_the_warm_up() -> None:
    net = supernet()

    losses(net, turn=1)["error"].backward()  # type: ignore[no-untyped-call] # torch types it not

    assert net.logits[0].grad is None


def test_a_draw_gives_the_loss_of_the_option_that_it_falls_on() -> None:
    net = supernet()

    drawn = losses(net, turn=5)["error"]

    place = int(gumbel(3, net.plan.generator(5)).argmax())
    batch = next(Greys(0).epoch(0))
    own = Grey(list(OPTIONS)[place])
    own.load_state_dict(net.network.state_dict())
    torch.testing.assert_close(drawn, own(batch.images_BCHW.float() / 255, batch.targets)["error"], rtol=0, atol=0)


def test_options_are_drawn_as_often_as_they_are_probable() -> None:
    logits_O = torch.tensor([0.0, 1.0, 2.0])
    generator = torch.Generator().manual_seed(0)

    draws = torch.stack([(logits_O + gumbel(3, generator)).argmax() for _ in range(4000)])

    shares_O = draws.bincount(minlength=3) / 4000
    # Four standard errors of a share.
    torch.testing.assert_close(shares_O, logits_O.softmax(0), rtol=0, atol=4 * 0.5 / 4000**0.5)


def test_in_evaluation_it_is_the_most_probable_network() -> None:
    net = supernet().eval()
    net.logits[0].data = torch.tensor([0.0, 0.0, 9.0])
    own = Grey("absolute")
    own.load_state_dict(net.network.state_dict())
    images_BCHW = torch.rand(2, 3, 2, 2)

    assert torch.equal(net(images_BCHW), own(images_BCHW))


def test_a_loss_is_multiplied_by_a_power_of_what_its_draw_costs() -> None:
    plain, dear = supernet(), supernet(Cost(first=2.0, differences={"between": (0.0, 6.0, 6.0)}, exponent=0.5))
    turn = next(turn for turn in range(3, 99, 2) if int(gumbel(3, plain.plan.generator(turn)).argmax()))

    torch.testing.assert_close(losses(dear, turn)["error"], 2 * losses(plain, turn)["error"])


def test_the_cost_alone_draws_the_logits_to_the_cheap_option() -> None:
    net = supernet(Cost(first=1.0, differences={"between": (0.0, 9.0, 9.0)}, exponent=1.0))
    nn.init.zeros_(net.network.get_parameter("last.weight"))  # all options then find the same

    torch.stack([losses(net, turn)["error"] for turn in (3, 5, 7)]).sum().backward()  # type: ignore[no-untyped-call] # torch types it not

    # It descends against the gradient.
    cheap, *others = net.logits[0].grad.tolist()
    assert cheap < 0 < min(others)


def test_the_temperature_falls_by_the_same_factor_from_turn_to_turn() -> None:
    plan = Plan(turns=7, warm=4, temperature=4.0, final_temperature=1.0, seed=0)

    assert [plan.temperature_at(turn) for turn in (0, 4, 5, 6)] == pytest.approx([4.0, 4.0, 2.0, 1.0])


class Numbered:
    """Batches that say whose they are, of which epoch and place."""

    def __init__(self, name: str, count: int) -> None:
        self.name = name
        self.count = count

    def __len__(self) -> int:
        return self.count

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Any]:
        yield from ((self.name, epoch, position) for position in range(start_batch, self.count))


def alternating(turns: list[int]) -> AlternatingBatches:
    return AlternatingBatches(Numbered("w", 3), Numbered("l", 2), warm_epochs=1, begin_turn=turns.append)


def test_the_weights_have_all_turns_of_the_warm_up_and_then_every_other() -> None:
    turns: list[int] = []
    batches = alternating(turns)

    warm: list[Any] = list(batches.epoch(0))
    after: list[Any] = list(batches.epoch(1))

    assert warm == [("w", 0, 0), ("w", 0, 1), ("w", 0, 2), ("w", 1, 0), ("w", 1, 1), ("w", 1, 2)]
    assert after == [("w", 2, 0), ("l", 2, 0), ("w", 2, 1), ("l", 2, 1), ("w", 2, 2), ("l", 2, 0)]
    assert turns == list(range(12))


@pytest.mark.parametrize("epoch", [0, 1])
@pytest.mark.parametrize("start", range(6))
def test_turns_go_on_in_the_middle_of_an_epoch_as_they_would_have(epoch: int, start: int) -> None:
    turns: list[int] = []

    rest = list(alternating(turns).epoch(epoch, start))

    assert rest == list(alternating([]).epoch(epoch))[start:]
    assert turns == list(range(6 * epoch + start, 6 * epoch + 6))


@pytest.mark.parametrize("seed", range(3))
def test_the_option_that_the_task_needs_becomes_the_most_probable(tmp_path: Path, seed: int) -> None:
    probabilities = learned(tmp_path / "run", seed).probabilities()["between"]

    # By chance all three seeds would find it one time in 27.
    assert max(range(3), key=probabilities.__getitem__) == list(OPTIONS).index("absolute")


@pytest.mark.parametrize(
    "batches", [pytest.param(13, id="warm-up"), pytest.param(34, id="weights-next"), pytest.param(35, id="logits-next")]
)
def test_a_supernet_that_was_killed_ends_as_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batches: int
) -> None:
    whole = learned(tmp_path / "whole", 0, epochs=3).probabilities()
    given = count()

    def broken(self: Greys, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        for batch in intact(self, epoch, start_batch):
            if next(given) == batches:
                raise KeyboardInterrupt
            yield batch

    intact = Greys.epoch
    with monkeypatch.context() as patch:
        patch.setattr(Greys, "epoch", broken)
        with pytest.raises(KeyboardInterrupt):
            learned(tmp_path / "killed", 0, epochs=3)

    assert learned(tmp_path / "killed", 0, epochs=3).probabilities() == whole


def test_a_supernet_leaves_out_what_concerns_finished_models() -> None:
    finished = {"train.freeze": ["backbone"], "train.precision": "float16", "train.snapshot_every": 1}
    given = load_recipe("yolov7-tiny-small-data", finished)

    recipe = supernet_recipe(given, 3)

    assert "ema" in given.tables
    assert not {"ema", "observers"} & set(recipe.tables)
    train = recipe.train
    assert (train.epochs, train.nominal_batch, train.evaluate_every, train.snapshot_every) == (3, 0, 0, 0)
    assert (train.freeze, train.precision) == ((), "auto")
