"""Extended ELAN from its summed form to its grouped one: half the layers, twice as wide.

Reference: Wang, Bochkovskiy and Liao, YOLOv7 (2022), section 3.1 and figure 2 (d).
"""

from collections.abc import Callable
from typing import Any

from torch import nn

from detloom.errors import PluginError
from detloom.hookspecs import hookimpl
from detloom.interfaces import Fold, ReparamPass
from detloom_plugins.e_elan import grouped, objection_to_grouping
from detloom_plugins.layers import SummedElan
from detloom_plugins.sharing import Sharing

__all__ = ["MergeEElanPass"]


class MergeEElanPass(ReparamPass):
    """Replace summed aggregations by one with group convolutions; as many parameters and operations, fewer layers.

    Works before and after norms were fused. Whether it is faster depends on the device's group convolutions.
    """

    def plan(self, model: nn.Module) -> list[Fold]:
        """Return every sum of aggregations: into how many groups, or why it stays."""
        sharing = Sharing(model)
        plan = []
        for path, module in model.named_modules():
            if isinstance(module, SummedElan):
                objection = objection_to_grouping(module) or sharing.objection_to_all(module)
                reason = objection or f"{len(module.branches)} branches into as many groups"
                plan.append(Fold(path, applies=not objection, reason=reason))
        return plan

    def fold(self, module: nn.Module, fold: Fold) -> nn.Module:
        """Return the grouped form."""
        if not isinstance(module, SummedElan):
            raise PluginError(f"merge-e-elan: {fold.path or 'the model'} is no sum of aggregations")
        return grouped(module)


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the pass."""
    register("merge-e-elan", MergeEElanPass)
