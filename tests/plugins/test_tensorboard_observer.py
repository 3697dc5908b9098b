"""Event files hold what the run said."""

from pathlib import Path

import pytest

from detloom.engine.run import Run
from detloom.errors import PluginError
from detloom.interfaces import Metrics
from detloom.recipe import Recipe
from detloom_plugins.tensorboard_observer import TensorboardObserver


def test_losses_and_metrics_are_curves(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra detloom[tensorboard] is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = Run(tmp_path, Recipe("r", {}, {}), ("a",), "data", {"AP": 1.0}, 1)
    observer = TensorboardObserver()
    observer.run_started(run)
    observer.step_finished(run, 1, {"box": 0.5}, 0.01)
    observer.step_finished(run, 2, {"box": 0.25}, 0.01)
    run.step = 2
    observer.epoch_finished(run, 1, {"box": 0.375}, Metrics({"AP": 0.75, "APs": float("nan")}, {}))

    observer.run_finished(run)

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(point.step, point.value) for point in events.Scalars("loss/box")] == [(1, 0.5), (2, 0.25)]
    assert [(point.step, point.value) for point in events.Scalars("val/AP")] == [(2, 0.75)]
    assert "val/APs" not in events.Tags()["scalars"]


def test_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)

    with pytest.raises(PluginError, match=r"pip install 'detloom\[tensorboard\]'"):
        TensorboardObserver()
