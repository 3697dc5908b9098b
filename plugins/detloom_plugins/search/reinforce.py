"""Search by reinforcement: a controller learns which options are rewarded.

The controller is replayed from the history at each proposal, so nothing of it is kept. It has a categorical
distribution for each key, apart from the others, where Zoph and Le have a recurrent network: from tens of trials
instead of thousands such a network learns nothing.

Shape letters: K keys, O options of the key that has most.

References: Zoph and Le, Neural architecture search with reinforcement learning (2017), arXiv:1611.01578, section 3.2;
Williams, Simple statistical gradient-following algorithms for connectionist reinforcement learning (1992); Tan et al.,
MnasNet (2019), arXiv:1807.11626, section 3.1, equation 2, for the cost.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from detloom.errors import RecipeError
from detloom.hookspecs import hookimpl
from detloom.interfaces import SearchStrategy
from detloom.search.space import Point, SearchSpace, Trial, known
from detloom_plugins.search.untried import random_of, untried

__all__ = ["ReinforceSearch"]

ATTEMPTS = 50
"""Points that are drawn, of which the first that was not proposed yet is taken."""

FEWEST = 3
"""Trials from which deviations say something."""

ROUNDING = 1e-9
"""Deviations below this share of the mean are none."""


class ReinforceSearch(SearchStrategy):
    """Policy gradients on one distribution for each key, with a moving baseline and a bonus for entropy.

    What a trial is rewarded with beyond the baseline counts in units of the deviation of all rewards, so that one
    learning rate serves AP and any score. It learns from the third trial on: of two, the deviation is their distance,
    however small it is.

    Args:
        space: Of any choices.
        learning_rate: Step of the logits for a reward that is one deviation above the baseline.
        entropy: Weight of the entropy, which keeps options in play.
        baseline_decay: Part of the moving baseline that is kept at a trial.
        cost_exponent: The reward is the first objective times this power of each other one, relative to the first
            trial that has some of it: 0.07 takes twice the cost for 5 % more of the first objective.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        learning_rate: float = 0.5,
        entropy: float = 0.02,
        baseline_decay: float = 0.8,
        cost_exponent: float = 0.07,
    ) -> None:
        super().__init__(space)
        if not 0 < learning_rate < math.inf:
            raise RecipeError(f"learning_rate must be above 0 and finite, got {learning_rate}")
        if not 0 <= entropy < math.inf:
            raise RecipeError(f"entropy must be at least 0 and finite, got {entropy}")
        if not 0 <= baseline_decay < 1:
            raise RecipeError(f"baseline_decay must be at least 0 and below 1, got {baseline_decay}")
        if not 0 <= cost_exponent < math.inf:
            raise RecipeError(f"cost_exponent must be at least 0 and finite, got {cost_exponent}")
        self.learning_rate = learning_rate
        self.entropy = entropy
        self.baseline_decay = baseline_decay
        self.cost_exponent = cost_exponent

    def propose(
        self,
        history: Sequence[Trial],
        prepared: Mapping[str, Any],  # noqa: ARG002 - nothing was prepared
        generator: torch.Generator,
    ) -> Point | None:
        """Return a point that was not proposed yet, or None where all were."""
        return self.drawn(history, generator)

    def drawn(
        self, history: Sequence[Trial], generator: torch.Generator, start_KO: Tensor | None = None
    ) -> Point | None:
        """Return a draw of the controller after a history, of the points that were not proposed yet, or None.

        Args:
            history: All trials.
            generator: Of the draw.
            start_KO: Logits before the first trial; all options alike when not given.
        """
        proposed = {trial.point for trial in history}
        if len(proposed) < self.space.size:
            probability_KO = self.logits_after(history, start_KO).softmax(dim=1)
            for _ in range(ATTEMPTS):
                place_K = torch.multinomial(probability_KO, 1, generator=generator)[:, 0]
                point = tuple(place_K.tolist())
                if point not in proposed:
                    return point
        # The controller is sure of points that are known: what is left is not what it has learned of.
        return untried(self.space, proposed, random_of(generator))

    def logits_after(self, history: Sequence[Trial], start_KO: Tensor | None = None) -> Tensor:
        """Return the logits ``[K, O]`` of a controller that learned from a history, minus infinity where no option is.

        Trials that another strategy proposed, or the controller at an earlier time, are learned from as its own.

        Args:
            history: All trials.
            start_KO: Logits before the first trial, 0 when not given.
        """
        counts = torch.tensor(self.space.counts)
        most = max(self.space.counts)
        is_option_KO = torch.arange(most) < counts[:, None]
        logit_KO = torch.zeros(is_option_KO.shape, dtype=torch.float64) if start_KO is None else start_KO
        logit_KO = logit_KO.masked_fill(~is_option_KO, -math.inf)
        trials = known(history)
        rewards = self.rewards(trials)
        baseline = rewards[0] if rewards else 0.0
        for number, (trial, reward) in enumerate(zip(trials, rewards, strict=True), start=1):
            advantage = (reward - baseline) / _deviation(rewards[:number]) if number >= FEWEST else 0.0
            baseline = self.baseline_decay * baseline + (1 - self.baseline_decay) * reward
            place_KO = torch.nn.functional.one_hot(torch.tensor(trial.point), most)
            logit_KO = logit_KO + self.learning_rate * self.gradient(logit_KO, place_KO, advantage)
        return logit_KO

    def gradient(self, logit_KO: Tensor, place_KO: Tensor, advantage: float) -> Tensor:
        """Return the gradient ``[K, O]`` of ``advantage * log p(point) + entropy * H`` at the logits.

        Args:
            logit_KO: Of the controller.
            place_KO: 1 at the options of the point, 0 elsewhere.
            advantage: Of its reward over the baseline.
        """
        probability_KO = logit_KO.softmax(dim=1)
        surprise_KO: Tensor = torch.special.entr(probability_KO)
        entropy_K1 = surprise_KO.sum(dim=1, keepdim=True)
        towards_entropy_KO = surprise_KO - probability_KO * entropy_K1
        return advantage * (place_KO - probability_KO) + self.entropy * towards_entropy_KO

    def rewards(self, trials: Sequence[Trial]) -> list[float]:
        """Return the reward of each trial with values."""
        columns = zip(*(trial.values for trial in trials), strict=True)
        firsts = [next((value for value in column if value > 0), 1.0) for column in columns]
        found = []
        for trial in trials:
            exponent = 0.0
            for value, first, objective in zip(trial.values, firsts, self.space.objectives, strict=True):
                # Costs of 0 and below have no ratio, and are not rewarded.
                if objective is not self.space.objectives[0] and value > 0:
                    sign = 1 if objective.is_maximised else -1
                    exponent += sign * self.cost_exponent * math.log(value / first)
            value = trial.values[0] if self.space.objectives[0].is_maximised else -trial.values[0]
            # What is below 0, as a score can be, is better where it is nearer to 0.
            found.append(value * math.exp(exponent if value > 0 else -exponent))
        return found


def _deviation(values: Sequence[float]) -> float:
    """Return the standard deviation, or infinity where values differ by no more than rounding does."""
    mean = math.fsum(values) / len(values)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
    return deviation if deviation > ROUNDING * abs(mean) else math.inf


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the strategy."""
    register("reinforce", ReinforceSearch)
