"""The hooks that a plugin may implement.

``PluginHooks`` are asked once, when plugins are loaded. ``RunHooks`` are called on the observers
of a run, as it goes.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from detloom.engine.run import Run
    from detloom.interfaces import Metrics

__all__ = ["PLUGIN_API", "PluginHooks", "RunHooks", "hookimpl", "hookspec"]

PLUGIN_API = 1
"""The version of the contracts and hooks; it grows when plugins that follow them must be changed."""

PROJECT = "detloom"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class PluginHooks:
    """What a plugin module offers."""

    @hookspec(historic=True)
    def register_components(self, register: Callable[[str, type[Any]], None]) -> None:
        """Offer components: call ``register(name, cls)`` for each.

        The kind is read off the class. Called when one of the plugin's names is first needed.
        """


class RunHooks:
    """The life of a run; called on its observers, in the main process alone."""

    @hookspec
    def run_started(self, run: "Run") -> None:
        """Follow a run from its first step, or from where it resumes."""

    @hookspec
    def step_finished(self, run: "Run", step: int, losses: Mapping[str, float], learning_rate: float) -> None:
        """See the weighted losses after an optimiser step, counted from 1.

        Called every ``[train] log_every`` steps and at the end of an epoch, with the means since the last call.
        """

    @hookspec
    def epoch_finished(
        self, run: "Run", epoch: int, losses: Mapping[str, float], metrics: "Metrics | None"
    ) -> bool | None:
        """See an epoch's mean losses and, where it was evaluated, its metrics; True asks the run to stop.

        Epochs are counted from 1; the epoch is already in ``run.history``.
        """

    @hookspec
    def run_finished(self, run: "Run") -> None:
        """Close files; called when a run ends, is stopped, or fails."""
