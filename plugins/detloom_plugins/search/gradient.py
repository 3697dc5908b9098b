"""Search by gradient: one supernet learns how probable each option is, and trials teach that on.

What is derived is trained and measured as any other trial, from the start. The supernet is trained before the first
trial, for as many epochs and seconds as its result says: they belong to the search's cost.

References: Liu, Simonyan and Yang, DARTS (2019), arXiv:1806.09055; Xie et al., SNAS (2019), arXiv:1812.09926; Wu et
al., FBNet (2019), arXiv:1812.03443, whose section 4.1 has the defaults of logits, temperatures and warm-up; Tan et al.,
MnasNet (2019), arXiv:1807.11626, section 3.1, for the exponent of the cost; Williams (1992), as in ``reinforce``, for
what trials teach.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from detloom.errors import RecipeError
from detloom.hookspecs import hookimpl
from detloom.interfaces import SearchStrategy
from detloom.kinds import Kind
from detloom.search.ground import Ground
from detloom.search.space import Point, SearchSpace, Trial
from detloom_plugins.search.reinforce import ReinforceSearch

__all__ = ["GradientSearch"]

NETWORK = (Kind.BACKBONE, Kind.NECK, Kind.HEAD, Kind.SCALING)
"""The sections of a recipe that a network is made of."""

LEAST = -30.0
"""Logarithm of a probability that no draw falls on."""


class GradientSearch(SearchStrategy):
    """A supernet with Gumbel-softmax over the options of each key, then its points, from which it goes on learning.

    The most probable point is the first trial. The others are drawn, and each teaches the probabilities on, as it does
    those of ``reinforce``: options that share weights are compared on weights that none of them has for itself.

    Args:
        space: Of choices that change the network.
        epochs: Of the supernet, half of whose steps are the weights'; 0: twice as many as a trial has.
        warm_up: Share of the epochs in which the weights learn alone, so that no option profits from learning fast.
        temperature: Of the first draws.
        final_temperature: Of the last; between them it falls by a factor.
        learning_rate: Of the logits, by Adam.
        weight_decay: Of the logits.
        trust: How far the supernet's logits count among the trials: 1.0 as they were learned, 0.0 not at all. The
            default is from the table of docs/search.md, where the supernet's order said little.
        trial_learning_rate: Step of the logits for a trial whose reward is one deviation above the baseline.
        cost_exponent: Where an objective is a cost, the loss is multiplied by this power of it: 0.07 takes twice the
            cost for a loss that is smaller by 5 %. The reward of a trial is multiplied by its inverse.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        epochs: int = 0,
        warm_up: float = 0.1,
        temperature: float = 5.0,
        final_temperature: float = 0.1,
        learning_rate: float = 0.01,
        weight_decay: float = 0.0005,
        trust: float = 0.25,
        trial_learning_rate: float = 0.5,
        cost_exponent: float = 0.07,
    ) -> None:
        super().__init__(space)
        if epochs < 0:
            raise RecipeError(f"epochs must be at least 1, or 0 for twice those of a trial, got {epochs}")
        if not 0 <= warm_up < 1:
            raise RecipeError(f"warm_up is a share of the epochs, from 0 to below 1, got {warm_up}")
        if not 0 < final_temperature <= temperature:
            raise RecipeError(
                f"temperatures must be above 0 and not rise, got temperature = {temperature}, "
                f"final_temperature = {final_temperature}"
            )
        if learning_rate <= 0 or weight_decay < 0 or cost_exponent < 0:
            raise RecipeError(
                "learning_rate must be above 0, weight_decay and cost_exponent at least 0, got "
                f"{learning_rate}, {weight_decay} and {cost_exponent}"
            )
        if not 0 <= trust <= 1:
            raise RecipeError(f"trust is a share of what the supernet has learned, from 0 to 1, got {trust}")
        if not 0 < trial_learning_rate < math.inf:
            raise RecipeError(f"trial_learning_rate must be above 0 and finite, got {trial_learning_rate}")
        self.trust = trust
        self.controller = ReinforceSearch(space, learning_rate=trial_learning_rate, cost_exponent=cost_exponent)
        self.epochs = epochs
        self.warm_up = warm_up
        self.temperature = temperature
        self.final_temperature = final_temperature
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.cost_exponent = cost_exponent

    def objection(self) -> str | None:
        """Return which keys do not change the network, or None."""
        others = [choice.key for choice in self.space.choices if choice.key.partition(".")[0] not in NETWORK]
        if not others:
            return None
        named = ", ".join(f"'{key}'" for key in others)
        return (
            f"{named}: a supernet chooses between networks, and this is no part of one; accepted are choices in "
            f"{', '.join(NETWORK)}. Take it out of [space], or search with 'evolution' or another strategy"
        )

    def prepare(self, ground: Ground) -> Mapping[str, Any]:
        """Train the supernet and return the probability of each option, by key, and what that took.

        Raises:
            RecipeError: A key does not change the network, or the networks cannot be mixed.
            KeyboardInterrupt: It was asked to stop, and can be gone on with.
        """
        from detloom_plugins.search.learning import LogitSettings
        from detloom_plugins.search.preparing import probabilities_of

        logits = LogitSettings(
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            warm_share=self.warm_up,
            temperature=self.temperature,
            final_temperature=self.final_temperature,
        )
        return probabilities_of(self.space, ground, epochs=self.epochs, logits=logits, cost_exponent=self.cost_exponent)

    def propose(
        self,
        history: Sequence[Trial],
        prepared: Mapping[str, Any],
        generator: torch.Generator,
    ) -> Point | None:
        """Return the most probable point, then draws of those that were not proposed yet; None where all were."""
        rows = [torch.tensor(prepared["probabilities"][choice.key]) for choice in self.space.choices]
        learned_KO = nn.utils.rnn.pad_sequence(rows, batch_first=True).double().log()
        derived = tuple(learned_KO.argmax(dim=1).tolist())
        if all(trial.point != derived for trial in history):
            return derived
        # Where nothing is trusted, an option of no probability is as good as the others.
        return self.controller.drawn(history, generator, learned_KO.clamp(min=LEAST) * self.trust)


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the strategy."""
    register("gradient", GradientSearch)
