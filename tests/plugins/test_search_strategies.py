"""Strategies on landscapes that are tables: evenness, what is learned, and what equal budgets find.

Whether one strategy finds more than another is a matter of chance in a single search. So means over fixed seeds are
compared, on landscapes drawn with fixed seeds, and a lead must be larger than the half of its 95 % interval.
"""

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from itertools import product

import pytest
import torch

from detloom.errors import RecipeError
from detloom.interfaces import SearchStrategy
from detloom.search.front import hypervolume
from detloom.search.space import Choice, Objective, Point, SearchSpace, State, Trial
from detloom_plugins.search.crowding import best_first
from detloom_plugins.search.evolution import EvolutionSearch
from detloom_plugins.search.random_search import RandomSearch
from detloom_plugins.search.reinforce import ReinforceSearch
from detloom_plugins.search.untried import mutant, random_of, untried

Values = Callable[[Point], tuple[float, ...]]
AP = Objective("AP", is_maximised=True)
GFLOPS = Objective("gflops", is_maximised=False)
COUNTS = ((3, True), (4, False), (2, False), (5, True), (3, False), (4, True))
BUDGET = 24


def space(*counts: int, objectives: Sequence[Objective] = (AP,), ordered: bool = False) -> SearchSpace:
    choices = tuple(Choice(f"backbone.key{n}", tuple(range(each)), is_ordered=ordered) for n, each in enumerate(counts))
    return SearchSpace(choices, tuple(objectives), trials=BUDGET)


def searched(strategy: SearchStrategy, values: Values, *, seed: int = 0, trials: int = BUDGET) -> list[Trial]:
    """Return the trials of a search."""
    history: list[Trial] = []
    for number in range(trials):
        point = strategy.propose(tuple(history), {}, torch.Generator().manual_seed(1_000_003 * seed + number))
        if point is None:
            break
        history.append(Trial(number, point, State.FINISHED, values(point)))
    return history


class Landscape:
    """AP and cost of 1440 points: each option has an effect, and so has each pair of options.

    Effects of ordered options are parabolas; more of them costs more, and helps, so that there is a front.
    """

    def __init__(self, seed: int, objectives: Sequence[Objective]) -> None:
        source = random.Random(seed)  # noqa: S311 - a landscape hides nothing
        choices = tuple(Choice(f"backbone.key{n}", tuple(range(c)), is_ordered=o) for n, (c, o) in enumerate(COUNTS))
        self.space = SearchSpace(choices, tuple(objectives), trials=BUDGET)
        self._effects = [self._drawn(source, count, is_ordered=is_ordered) for count, is_ordered in COUNTS]
        self._pairs = {
            (key, other): [[source.gauss(0, 0.3) for _ in range(COUNTS[other][0])] for _ in range(COUNTS[key][0])]
            for key in range(len(COUNTS))
            for other in range(key)
        }

    def values(self, point: Point) -> tuple[float, ...]:
        """Return the values of the objectives."""
        worth = sum(effects[place] for effects, place in zip(self._effects, point, strict=True))
        worth += sum(table[point[key]][point[other]] for (key, other), table in self._pairs.items())
        cost = 1 + sum((place + 1) * (1.0 if o else 0.2) for place, (_, o) in zip(point, COUNTS, strict=True))
        ap = 0.6 / (1 + math.exp(-0.35 * worth))
        return (ap,) if len(self.space.objectives) == 1 else (ap + 0.012 * cost, cost)

    @cache  # noqa: B019 - landscapes live as long as the tests
    def everything(self) -> list[tuple[float, ...]]:
        """Return the values of all points."""
        return [self.values(point) for point in product(*map(range, self.space.counts))]

    def share(self, trials: Sequence[Trial]) -> float:
        """Return what was found.

        Of AP alone, 0 is the mean point and 1 the best; of two objectives, the part of the box around all points that
        those found are better than.
        """
        values, everything = [trial.values for trial in trials], self.everything()
        if len(self.space.objectives) == 1:
            mean = sum(each[0] for each in everything) / len(everything)
            return (max(values)[0] - mean) / (max(everything)[0] - mean)
        worst = (min(each[0] for each in everything), max(each[1] for each in everything))
        best = (max(each[0] for each in everything), min(each[1] for each in everything))
        return hypervolume(values, worst, (AP, GFLOPS)) / hypervolume([best], worst, (AP, GFLOPS))

    @staticmethod
    def _drawn(source: random.Random, count: int, *, is_ordered: bool) -> list[float]:
        if not is_ordered:
            return [source.gauss(0, 1) for _ in range(count)]
        slope, bend = source.gauss(0, 1), source.gauss(0, 0.7)
        places = [2 * place / (count - 1) - 1 for place in range(count)]
        return [slope * place + bend * place**2 for place in places]


@cache
def landscapes(*objectives: Objective) -> list[Landscape]:
    return [Landscape(seed, objectives) for seed in range(10)]


def leads(
    build: Callable[[SearchSpace], SearchStrategy], objectives: tuple[Objective, ...], trials: int
) -> list[float]:
    """Return by how much more a strategy finds than random search, of each landscape and seed."""
    return [
        each.share(searched(build(each.space), each.values, seed=seed, trials=trials))
        - each.share(searched(RandomSearch(each.space), each.values, seed=seed, trials=trials))
        for each in landscapes(*objectives)
        for seed in range(3)
    ]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the half of its 95 % interval."""
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, 1.96 * math.sqrt(variance / len(values))


@pytest.mark.parametrize(
    ("build", "objectives", "trials"),
    [
        (EvolutionSearch, (AP,), 24),
        # With 24 trials the lead in hypervolume is smaller than its interval.
        (EvolutionSearch, (AP, GFLOPS), 48),
        # The controller seeks a reward, not a front.
        (ReinforceSearch, (AP,), 24),
    ],
)
def test_more_is_found_than_by_random_search_at_the_same_budget(
    build: Callable[[SearchSpace], SearchStrategy], objectives: tuple[Objective, ...], trials: int
) -> None:
    mean, half = interval(leads(build, objectives, trials))

    assert mean > half, f"leads by {mean:.3f} +- {half:.3f}"


def test_random_search_draws_evenly() -> None:
    strategy = RandomSearch(space(2, 3))

    drawn = Counter(strategy.propose((), {}, torch.Generator().manual_seed(seed)) for seed in range(1200))

    # 200 each; four deviations of a binomial are 52.
    assert len(drawn) == 6
    assert all(abs(number - 200) < 52 for number in drawn.values())


def test_random_search_draws_what_is_left_evenly() -> None:
    where, proposed = space(2, 3), {(0, 0), (0, 1), (1, 2)}

    drawn = Counter(untried(where, proposed, random_of(torch.Generator().manual_seed(seed))) for seed in range(900))

    # 300 each; four deviations of a binomial are 57.
    assert set(drawn) == {(0, 2), (1, 0), (1, 1)}
    assert all(abs(number - 300) < 57 for number in drawn.values())


@pytest.mark.parametrize("build", [EvolutionSearch, RandomSearch, ReinforceSearch])
def test_every_point_is_found_once_and_then_the_search_ends(build: Callable[[SearchSpace], SearchStrategy]) -> None:
    trials = searched(build(space(3, 4)), lambda point: (float(sum(point)),))

    assert len(trials) == len({trial.point for trial in trials}) == 12


def test_spaces_of_any_size_are_drawn_from() -> None:
    large = space(*[1000] * 40)

    (trial,) = searched(RandomSearch(large), lambda _: (0.0,), trials=1)

    assert large.complaint(trial.point) is None


def test_mutants_of_numbers_are_neighbours_mostly() -> None:
    where = space(9, ordered=True)

    found = Counter(mutant(where, (4,), (), random_of(torch.Generator().manual_seed(seed))) for seed in range(500))

    # 0.8 and a quarter of 0.2; five deviations of a binomial are 0.08.
    assert abs((found[(3,)] + found[(5,)]) / 500 - 0.85) < 0.08
    assert (4,) not in found


def test_mutants_of_mutants_that_are_known_are_none() -> None:
    assert mutant(space(2, 2), (0, 0), {(0, 1), (1, 0)}, random_of(torch.Generator())) is None


def test_the_oldest_dies_however_good_it_is() -> None:
    where = space(9, 9, ordered=True)
    history = [
        Trial(0, (8, 8), State.FINISHED, (0.9,)),
        Trial(1, (0, 0), State.FINISHED, (0.1,)),
        Trial(2, (0, 1), State.FINISHED, (0.2,)),
    ]
    strategy = EvolutionSearch(where, population=2, sample=50)

    children = [strategy.propose(history, {}, torch.Generator().manual_seed(seed)) for seed in range(20)]

    assert all(child is not None and (child[0] == 0 or child[1] == 1) for child in children)


def test_fronts_come_before_crowding_and_ends_before_the_middle() -> None:
    values = [(0.5, 5.0), (0.1, 1.0), (0.4, 6.0), (0.4, 4.9), (0.2, 2.0)]
    trials = [Trial(number, (number,), State.FINISHED, each) for number, each in enumerate(values)]

    ordered = best_first(trials, (AP, GFLOPS))

    # (0.4, 6.0) is dominated. Of the middle, (0.2, 2.0) spans 0.3 / 0.4 + 3.9 / 4 and (0.4, 4.9) 0.3 / 0.4 + 3 / 4.
    assert [trial.number for trial in ordered] == [0, 1, 4, 3, 2]


def test_controller_learns_the_option_that_is_rewarded() -> None:
    strategy = ReinforceSearch(space(3, 3))
    trials = searched(strategy, lambda point: (0.3 if point[0] == 2 else 0.1,), trials=9)

    probability_KO = strategy.logits_after(trials).softmax(dim=1)

    assert probability_KO[0].argmax() == 2
    assert probability_KO[0, 2] > probability_KO[1].max()


@pytest.mark.parametrize("ap", [0.1, 0.2, 0.3, 1 / 3, 0.7])
def test_equal_rewards_teach_nothing_and_two_trials_neither(ap: float) -> None:
    strategy = ReinforceSearch(space(3, 3), entropy=0.0)

    equal = strategy.logits_after(searched(strategy, lambda _: (ap,), trials=9))
    two = strategy.logits_after(searched(strategy, lambda point: (ap + 1e-6 * point[0],), trials=2))

    assert not equal.any()
    assert not two.any()


def test_gradient_of_the_controller_is_that_of_autograd() -> None:
    strategy = ReinforceSearch(space(3, 3), entropy=0.3)
    logit_KO = torch.tensor([[0.2, -0.5, 1.0], [0.0, 0.3, -0.1]], dtype=torch.float64, requires_grad=True)
    place_KO = torch.tensor([[0, 1, 0], [1, 0, 0]])
    log_KO = logit_KO.log_softmax(dim=1)

    aim = 0.7 * (place_KO * log_KO).sum() - 0.3 * (log_KO.exp() * log_KO).sum()
    (expected_KO,) = torch.autograd.grad(aim, logit_KO)

    torch.testing.assert_close(strategy.gradient(logit_KO.detach(), place_KO, 0.7), expected_KO)


def test_keys_with_fewer_options_have_none_that_are_not_there() -> None:
    strategy = ReinforceSearch(space(2, 4))
    trials = searched(strategy, lambda point: (0.1 * point[0],), trials=6)

    probability_KO = strategy.logits_after(trials).softmax(dim=1)

    assert probability_KO[0, 2:].tolist() == [0, 0]
    torch.testing.assert_close(probability_KO.sum(dim=1), torch.ones(2, dtype=torch.float64))


def test_reward_falls_with_a_power_of_the_cost_relative_to_the_first_trial() -> None:
    strategy = ReinforceSearch(space(3, objectives=(AP, GFLOPS)), cost_exponent=0.07)
    values = [(0.3, 10.0), (0.3, 20.0), (0.3, 5.0)]
    trials = [Trial(number, (number,), State.FINISHED, each) for number, each in enumerate(values)]

    rewards = strategy.rewards(trials)

    assert rewards == pytest.approx([0.3, 0.3 * 2**-0.07, 0.3 * 2**0.07])


def test_first_trial_that_costs_nothing_leaves_the_others_their_costs() -> None:
    strategy = ReinforceSearch(space(3, objectives=(AP, GFLOPS)), cost_exponent=0.07)
    values = [(0.3, 0.0), (0.3, 1000.0), (0.3, 500.0)]

    rewards = strategy.rewards([Trial(number, (number,), State.FINISHED, each) for number, each in enumerate(values)])

    assert rewards == pytest.approx([0.3, 0.3, 0.3 * 2**0.07])


def test_reward_below_0_falls_with_the_cost_too() -> None:
    strategy = ReinforceSearch(space(2, objectives=(Objective("naswot", is_maximised=True), GFLOPS)))
    trials = [Trial(0, (0,), State.FINISHED, (-50.0, 1.0)), Trial(1, (1,), State.FINISHED, (-50.0, 2.0))]

    first, second = strategy.rewards(trials)

    assert second < first == -50.0


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: EvolutionSearch(space(2), population=1),
            "population must be at least 2, or 0 for one that suits the trials, got 1",
        ),
        (
            lambda: EvolutionSearch(space(2), sample=-1),
            "sample must be at least 1, or 0 for that of the population, got -1",
        ),
        (lambda: ReinforceSearch(space(2), learning_rate=0.0), "learning_rate must be above 0 and finite, got 0"),
        (lambda: ReinforceSearch(space(2), entropy=-1.0), "entropy must be at least 0 and finite, got -1"),
        (lambda: ReinforceSearch(space(2), baseline_decay=1.0), "baseline_decay must be at least 0 and below 1"),
        (lambda: ReinforceSearch(space(2), cost_exponent=-0.1), "cost_exponent must be at least 0 and finite"),
    ],
)
def test_settings_that_make_no_sense_are_refused(build: Callable[[], SearchStrategy], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build()
