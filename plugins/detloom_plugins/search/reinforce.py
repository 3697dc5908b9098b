"""Search by reinforcement: a controller learns which options are rewarded.

The controller is replayed from the history at each proposal, so nothing of it is kept. It has a categorical
distribution for each key, apart from the others, where Zoph and Le have a recurrent network: with tens of trials
instead of thousands there is nothing to learn such a network from.

Reference: Zoph and Le, Neural architecture search with reinforcement learning (2017), arXiv:1611.01578, section 3.2;
Williams (1992), REINFORCE; Tan et al., MnasNet (2019), arXiv:1807.11626, section 3.1, equation 2, for the cost.
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
