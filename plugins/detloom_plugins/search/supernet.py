"""A supernet: the woven network, a logit for each option, and turns in which the one or the others learn.

In a turn of the weights a point is drawn from the logits, and it alone is computed. In a turn of the logits all options
are computed, weighted by a draw that is one-hot on its way forward and soft on its way back, so that the cost is that
of one network; the weights are then constants. The loss is multiplied by a power of the cost over that of the point of
first options: the unit does not matter, and neither does the size of the loss.

References: Jang, Gu and Poole, Categorical reparameterization with Gumbel-softmax (2017), arXiv:1611.01144, section 2,
with the straight-through estimator of section 2.2; Xie et al., SNAS (2019), arXiv:1812.09926, section 2; Wu et al.,
FBNet (2019), arXiv:1812.03443, equations 2 and 5 for the cost, which is a sum over the keys; Tan et al., MnasNet
(2019), arXiv:1807.11626, equation 2, for the power.

Shape letters: O options of a key; B images, H and W rows and columns.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from detloom_plugins.search.weaving import Woven

__all__ = ["Cost", "Plan", "Supernet", "gumbel"]


@dataclass(frozen=True, slots=True)
class Cost:
    """What points cost, as a sum over the keys.

    Attributes:
        first: Of the point of first options, in any unit, above 0.
        differences: For each key, what each option costs more than the first one.
        exponent: Of the cost over ``first``, by which the loss is multiplied.
    """

    first: float
    differences: Mapping[str, Sequence[float]]
    exponent: float


@dataclass(frozen=True, slots=True)
class Plan:
    """Who learns in which turn, and how soft a draw is.

    Attributes:
        turns: In all.
        warm: Turns at the start, in which the weights learn alone.
        temperature: Of the draws in the first turn of the logits.
        final_temperature: Of those in the last.
        seed: Of the draws.
    """

    turns: int
    warm: int
    temperature: float
    final_temperature: float
    seed: int

    def is_of_logits(self, turn: int) -> bool:
        """Return whether the logits learn in a turn, counted from 0; else the weights do."""
        return turn >= self.warm and turn % 2 == 1

    def temperature_at(self, turn: int) -> float:
        """Return the temperature, which falls by the same factor from turn to turn after the warm-up."""
        share = max(turn - self.warm, 0) / max(self.turns - self.warm - 1, 1)
        return math.exp((1 - share) * math.log(self.temperature) + share * math.log(self.final_temperature))

    def generator(self, turn: int) -> torch.Generator:
        """Return the random numbers of a turn, which do not depend on those before."""
        return torch.Generator().manual_seed(self.seed * self.turns + turn)


class Supernet(nn.Module):
    """A woven network and the logits of its keys; called like the network.

    In evaluation it is the network of the most probable point.

    Args:
        woven: The network of all options.
        plan: Of the turns.
        cost: What points cost, where that matters.
    """

    def __init__(self, woven: Woven, plan: Plan, cost: Cost | None = None) -> None:
        super().__init__()
        self.network = woven.network
        self.logits = nn.ParameterList(torch.zeros(gate.num_options) for gate in woven.gates.values())
        self.plan = plan
        self.cost = cost
        self._woven = woven
        self._turn = 0

    def begin_turn(self, turn: int) -> None:
        """Say which turn the next call in training mode is."""
        self._turn = turn

    def probabilities(self) -> dict[str, list[float]]:
        """Return the probability of each option, by key."""
        return {key: each.detach().double().softmax(0).tolist() for key, each in self._by_key().items()}

    def forward(self, images_BCHW: Tensor, *rest: Any) -> Any:
        """Return what the network does for a draw, or in evaluation for the most probable options."""
        if not self.training:
            self._choose(self._by_key())
            return self.network(images_BCHW, *rest)
        generator = self.plan.generator(self._turn)
        noisy = {key: each + gumbel(len(each), generator).to(each) for key, each in self._by_key().items()}
        if not self.plan.is_of_logits(self._turn):
            self._choose(noisy)
            return self.network(images_BCHW, *rest)
        return self._for_logits(noisy, images_BCHW, *rest)

    def _for_logits(self, noisy: Mapping[str, Tensor], images_BCHW: Tensor, *rest: Any) -> Any:
        temperature = self.plan.temperature_at(self._turn)
        weights = {key: _straight_through(each, temperature) for key, each in noisy.items()}
        for key, gate in self._woven.gates.items():
            gate.weigh(weights[key])
        constant = {name: each.detach() for name, each in self.network.named_parameters()}
        losses = functional_call(self.network, constant, (images_BCHW, *rest))
        if self.cost is None:
            return losses
        factor = self._cost_factor(weights)
        return {name: loss * factor for name, loss in losses.items()}

    def _cost_factor(self, weights: Mapping[str, Tensor]) -> Tensor:
        assert self.cost is not None  # noqa: S101 - narrows the type
        ratio = torch.ones(())
        for key, weights_O in weights.items():
            differences_O = weights_O.new_tensor(self.cost.differences[key]) / self.cost.first
            ratio = ratio.to(weights_O) + (weights_O * differences_O).sum()
        # A sum over the keys may fall below the cheapest point.
        return ratio.clamp(min=1e-3) ** self.cost.exponent

    def _choose(self, scores: Mapping[str, Tensor]) -> None:
        self._woven.choose({key: int(each.argmax()) for key, each in scores.items()})

    def _by_key(self) -> dict[str, Tensor]:
        return dict(zip(self._woven.gates, self.logits, strict=True))


def gumbel(count: int, generator: torch.Generator) -> Tensor:
    """Return numbers of the standard Gumbel distribution, ``[count]``."""
    return -torch.log(torch.empty(count).exponential_(generator=generator))


def _straight_through(noisy_O: Tensor, temperature: float) -> Tensor:
    """Return one at the largest and zero elsewhere, with the gradient of the softmax."""
    soft_O = (noisy_O / temperature).softmax(0)
    hard_O = functional.one_hot(noisy_O.argmax(), len(noisy_O)).to(soft_O)
    return hard_O + (soft_O - soft_O.detach())
