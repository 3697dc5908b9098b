"""What the training loop does, and what it says when it cannot go on."""

import errno
import json
import math
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detloom.durable import read_tensors
from detloom.engine.progress import SilentView
from detloom.engine.run import Run
from detloom.errors import ArtifactError, PluginError, RecipeError, TrainingError
from detloom.hookspecs import hookimpl
from detloom.interfaces import Metrics, Observer
from detloom.structures import Targets
from detloom_plugins.ramped_ema import RampedEma


class Listener(Observer):
    """Notes what it is told."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, Any]] = []

    @hookimpl
    def run_started(self, run: Run) -> None:
        self.heard.append(("started", run.step))

    @hookimpl
    def step_finished(self, step: int, losses: Mapping[str, float]) -> None:
        self.heard.append(("step", (step, sorted(losses))))

    @hookimpl
    def epoch_finished(self, epoch: int, metrics: Metrics | None) -> None:
        self.heard.append(("epoch", (epoch, metrics is not None)))

    @hookimpl
    def run_finished(self, run: Run) -> None:
        self.heard.append(("finished", run.status))


class Sender(Observer):
    """Sends its process a signal at an optimiser step."""

    def __init__(self, number: int, step: int) -> None:
        self.number, self.step = number, step

    @hookimpl
    def step_finished(self, step: int) -> None:
        if step == self.step:
            os.kill(os.getpid(), self.number)


class EqualMean(RampedEma):
    """The mean of all weights so far; it counts for itself."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.count = 0

    def decay_at(self, step: int) -> float:  # noqa: ARG002 - the contract
        return 1 - 1 / self.count

    def update(self, model: nn.Module, step: int) -> None:
        self.count += 1
        super().update(model, step)

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.count = state["count"]


class Stopper(Observer):
    """Asks the run to stop at an epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    @hookimpl
    def epoch_finished(self, epoch: int) -> bool:
        return epoch == self.epoch


def weights_of(path: Path) -> bytes:
    tensors, _ = read_tensors(path)
    return b"".join(tensors[name].numpy().tobytes() for name in sorted(tensors))


def failing(stand_in: ModuleType, forward_pass: int, error: Exception | float) -> nn.Module:
    """Return a detector of which one forward pass raises, or has a loss of this value."""

    class Failing(stand_in.StandInDetector):  # type: ignore[misc, name-defined]  # a module loaded by path
        passes = 0

        def forward(self, images_BCHW: Tensor, targets: Targets) -> dict[str, Tensor]:
            self.passes += 1
            losses: dict[str, Tensor] = super().forward(images_BCHW, targets)
            if self.passes == forward_pass:
                if isinstance(error, Exception):
                    raise error
                losses["box"] = losses["box"] * error
            return losses

    return Failing()


def test_same_seed_gives_the_same_weights(stand_in: ModuleType, tmp_path: Path) -> None:
    for name in ("one", "two"):
        stand_in.begin(tmp_path / name)[0].train()

    assert weights_of(tmp_path / "one/last.safetensors") == weights_of(tmp_path / "two/last.safetensors")


def test_other_seed_gives_other_weights(stand_in: ModuleType, tmp_path: Path) -> None:
    for seed in (0, 1):
        stand_in.begin(tmp_path / str(seed), settings={"seed": seed})[0].train()

    assert weights_of(tmp_path / "0/last.safetensors") != weights_of(tmp_path / "1/last.safetensors")


def test_losses_fall(stand_in: ModuleType, tmp_path: Path) -> None:
    training, run = stand_in.begin(tmp_path / "run", settings={"epochs": 6})

    training.train()

    assert sum(run.history[-1].losses.values()) < 0.5 * sum(run.history[0].losses.values())
    assert run.status == "finished"


def test_observers_hear_the_life_of_a_run(stand_in: ModuleType, tmp_path: Path) -> None:
    listener = Listener()
    training, _ = stand_in.begin(
        tmp_path / "run", settings={"epochs": 2, "log_every": 3, "nominal_batch": 0}, observers=[listener]
    )

    training.train()

    both = ["box", "classes"]
    assert listener.heard == [
        ("started", 0),
        ("step", (3, both)),
        ("step", (5, both)),
        ("epoch", (1, True)),
        ("step", (6, both)),
        ("step", (9, both)),
        ("step", (10, both)),
        ("epoch", (2, True)),
        ("finished", "finished"),
    ]


def test_misspelt_hook_is_an_error(stand_in: ModuleType, tmp_path: Path) -> None:
    class Misspelt(Observer):
        @hookimpl
        def epoch_finnished(self) -> None: ...

    with pytest.raises(PluginError) as raised:
        stand_in.begin(tmp_path / "run", observers=[Misspelt()])

    said = str(raised.value)
    assert "the observer Misspelt" in said
    assert "implements 'epoch_finnished', which is no hook of a run. Did you mean 'epoch_finished'?" in said
    assert "hooks: run_started, step_finished, epoch_finished, run_finished" in said


def test_hook_with_an_unknown_argument_is_an_error(stand_in: ModuleType, tmp_path: Path) -> None:
    class Wrong(Observer):
        @hookimpl
        def epoch_finished(self, epohc: int) -> None: ...

    with pytest.raises(PluginError, match=r"the observer Wrong .* does not fit its hook: .*epohc"):
        stand_in.begin(tmp_path / "run", observers=[Wrong()])


def test_accumulated_passes_give_the_gradient_of_one_large_batch(stand_in: ModuleType, tmp_path: Path) -> None:
    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(2, 3))

        def forward(self, images_BCHW: Tensor, targets: Targets) -> dict[str, Tensor]:  # noqa: ARG002 - the contract
            return {"all": (images_BCHW.mean((2, 3)) @ self.scale.T).mean()}

    common = {"epochs": 1, "warmup_epochs": 0.0, "precision": "float32", "momentum": 0.0, "optimizer": "momentum"}
    weights = []
    for name, settings in {
        "parts": {"batch": 4, "nominal_batch": 20},
        "whole": {"batch": 20, "nominal_batch": 20},
    }.items():
        model = Linear()
        training, _ = stand_in.begin(tmp_path / name, settings={**common, **settings}, detector=model, make_ema=None)
        if name == "whole":
            parts = list(stand_in.StandInBatches(batch=4).epoch(0))
            images_BCHW = torch.cat([part.images_BCHW for part in parts])
            targets = Targets.from_lists([torch.zeros(0, 4)] * 20, [torch.zeros(0)] * 20, (16, 16))
            whole = parts[0].__class__(images_BCHW, targets, tuple(range(20)))
            training._batches.length = 1
            training._batches.epoch = lambda _epoch, _start, whole=whole: iter([whole])
        training.train()
        weights.append(model.scale.detach())

    torch.testing.assert_close(weights[0], weights[1], rtol=1e-6, atol=1e-7)
    assert not weights[0].equal(torch.ones(2, 3))


def test_frozen_part_keeps_weights_and_statistics(stand_in: ModuleType, tmp_path: Path) -> None:
    detector = stand_in.StandInDetector()
    before = {name: entry.clone() for name, entry in detector.state_dict().items()}

    stand_in.begin(tmp_path / "run", settings={"freeze": ["backbone"]}, detector=detector)[0].train()

    changed = {name for name, entry in detector.state_dict().items() if not entry.equal(before[name])}
    assert changed == {"head.weight", "head.bias"}


def test_frozen_part_computes_as_in_evaluation_and_is_still_in_training(stand_in: ModuleType, tmp_path: Path) -> None:
    detector = stand_in.StandInDetector(dropout=0.9)

    stand_in.begin(tmp_path / "run", settings={"freeze": ["backbone"], "epochs": 1}, detector=detector)[0].train()

    assert detector.backbone.training
    assert not any(module.training for module in detector.backbone)


def test_unknown_part_cannot_be_frozen(stand_in: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no part 'backbon'\. Did you mean 'backbone'\?\n  parts: backbone, head"):
        stand_in.begin(tmp_path / "run", settings={"freeze": ["backbon"]})


def test_loss_that_is_not_finite_ends_the_run_and_keeps_the_artifact(stand_in: ModuleType, tmp_path: Path) -> None:
    training, run = stand_in.begin(tmp_path / "run", detector=failing(stand_in, 7, math.nan))

    with pytest.raises(TrainingError) as raised:
        training.train()

    said = str(raised.value)
    assert "epoch 2, step 6: the loss box is nan" in said
    assert "since at most 2 steps ago" in said
    assert "learning_rate (now 0.01)" in said
    assert str(run.last) in said
    assert all(entry.isfinite().all() for entry in read_tensors(run.last)[0].values())
    assert run.status == "failed"


def test_weights_that_are_not_finite_are_never_saved(stand_in: ModuleType, tmp_path: Path) -> None:
    class Spoiler(Observer):
        @hookimpl
        def step_finished(self, step: int) -> None:
            if step == 7:
                nn.init.constant_(detector.head.bias, math.inf)
                nn.init.constant_(training.averaged.head.bias, math.inf)

    detector = stand_in.StandInDetector()
    training, run = stand_in.begin(tmp_path / "run", detector=detector, observers=[Spoiler()])

    with pytest.raises(TrainingError, match="weights are not finite"):
        training.train()

    assert all(entry.isfinite().all() for entry in read_tensors(run.last)[0].values())


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        MemoryError(),
    ],
)
def test_lack_of_memory_says_what_to_change(stand_in: ModuleType, tmp_path: Path, error: Exception) -> None:
    training, _ = stand_in.begin(tmp_path / "run", detector=failing(stand_in, 2, error))

    with pytest.raises(TrainingError, match=r"memory of cpu does not suffice(.|\n)*batch \(now 4;(.|\n)*image_size"):
        training.train()


def test_other_errors_stay_what_they_are(stand_in: ModuleType, tmp_path: Path) -> None:
    training, _ = stand_in.begin(tmp_path / "run", detector=failing(stand_in, 2, RuntimeError("a bug")))

    with pytest.raises(RuntimeError, match="a bug"):
        training.train()


def test_interrupt_in_the_last_step_finds_the_run_finished(stand_in: ModuleType, tmp_path: Path) -> None:
    training, run = stand_in.begin(tmp_path / "run", observers=[Sender(signal.SIGINT, 10)])

    training.train()

    assert run.step == 10
    assert run.status == "finished"
    assert run.message == ""


def test_best_artifact_is_of_a_recorded_epoch_though_epochs_do_not_repeat(stand_in: ModuleType, tmp_path: Path) -> None:
    class PowerCut(Observer):
        @hookimpl
        def epoch_finished(self, epoch: int) -> None:
            if epoch == 4:
                raise OSError("power cut")

    def evaluation(*values: float) -> Callable[[nn.Module], Metrics]:
        left = iter(values)
        return lambda _: Metrics({"AP": next(left)}, {})

    settings = {"epochs": 4, "save_every": 2, "fitness": {"AP": 1.0}}
    training, _ = stand_in.begin(
        tmp_path / "run", settings=settings, observers=[PowerCut()], evaluate=evaluation(0.2, 0.1, 0.9, 0.1)
    )
    with pytest.raises(OSError, match="power cut"):
        training.train()

    resumed, run = stand_in.begin(tmp_path / "run", settings=settings, resume=True, evaluate=evaluation(0.1, 0.1))
    resumed.train()

    assert [record.epoch for record in run.history] == [1, 2, 3, 4]
    assert json.loads(read_tensors(run.best)[1]["extra"])["metrics"] == run.metrics


def test_finished_run_says_so_and_how_to_train_longer(stand_in: ModuleType, tmp_path: Path) -> None:
    class Listener(SilentView):
        def __init__(self) -> None:
            self.heard: list[str] = []

        def said(self, text: str) -> None:
            self.heard.append(text)

    first, second = Listener(), Listener()
    stand_in.begin(tmp_path / "run", view=first)[0].train()

    resumed, run = stand_in.begin(tmp_path / "run", resume=True, view=second)
    resumed.train()

    assert run.status == "finished"
    assert first.heard == []
    assert "this run is finished: all of its 3 epochs are done" in second.heard[0]
    assert f"--set train.init_from={run.last} --set train.epochs=NUMBER" in second.heard[0]


def test_process_that_died_between_state_and_artifacts_has_them_after_it_resumed(
    stand_in: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(*_: object, **__: object) -> None:
        raise OSError("power cut")

    precisions = iter([0.2, 0.9, 0.1, 0.1])
    training, _ = stand_in.begin(
        tmp_path / "run", observers=[Stopper(2)], evaluate=lambda _: Metrics({"AP": next(precisions), "AP50": 0.0}, {})
    )
    with monkeypatch.context() as patches:
        patches.setattr("detloom.engine.loop.save_artifact", cut)
        with pytest.raises(OSError, match="power cut"):
            training.train()

    _, run = stand_in.begin(tmp_path / "run", resume=True)

    assert json.loads(read_tensors(run.best)[1]["extra"])["epoch"] == 1


def test_average_that_counts_for_itself_resumes_where_it_was(stand_in: ModuleType, tmp_path: Path) -> None:
    stand_in.begin(tmp_path / "whole", make_ema=EqualMean)[0].train()
    stand_in.begin(tmp_path / "run", make_ema=EqualMean, observers=[Sender(signal.SIGINT, 6)])[0].train()

    stand_in.begin(tmp_path / "run", make_ema=EqualMean, resume=True)[0].train()

    assert weights_of(tmp_path / "run/last.safetensors") == weights_of(tmp_path / "whole/last.safetensors")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_resumes_to_the_same_end(stand_in: ModuleType, tmp_path: Path, number: int) -> None:
    stand_in.begin(tmp_path / "whole")[0].train()
    training, run = stand_in.begin(tmp_path / "run", observers=[Sender(number, 6)])
    handler = signal.getsignal(number)

    training.train()
    status, step = run.status, run.step
    resumed, rest = stand_in.begin(tmp_path / "run", resume=True)
    resumed.train()

    assert (status, step) == ("interrupted", 7)
    assert "resume" in run.message
    assert rest.status == "finished"
    assert weights_of(tmp_path / "run/last.safetensors") == weights_of(tmp_path / "whole/last.safetensors")
    assert signal.getsignal(number) is handler


def test_second_interrupt_stops_at_once(stand_in: ModuleType, tmp_path: Path) -> None:
    training, run = stand_in.begin(tmp_path / "run", observers=[Sender(signal.SIGINT, 2), Sender(signal.SIGINT, 2)])

    with pytest.raises(KeyboardInterrupt):
        training.train()

    assert run.status == "interrupted"


def test_observer_ends_a_run_that_then_stays_ended(stand_in: ModuleType, tmp_path: Path) -> None:
    training, run = stand_in.begin(tmp_path / "run", observers=[Stopper(2)])

    training.train()
    resumed, rest = stand_in.begin(tmp_path / "run", resume=True)
    resumed.train()

    assert run.status == rest.status == "stopped"
    assert len(rest.history) == 2


def test_full_disk_is_told_and_leaves_the_last_artifact(
    stand_in: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Filler(Observer):
        @hookimpl
        def epoch_finished(self, epoch: int) -> None:
            if epoch == 2:
                monkeypatch.setattr("detloom.durable.save_file", full)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    training, run = stand_in.begin(tmp_path / "run", observers=[Filler()])

    with pytest.raises(ArtifactError, match="no space left on device"):
        training.train()

    assert read_tensors(run.last)[1]["extra"].startswith('{"epoch": 1,')
    assert not list(run.directory.glob("*.unfinished"))


def test_best_is_the_epoch_with_the_highest_fitness(stand_in: ModuleType, tmp_path: Path) -> None:
    precisions = iter([0.2, 0.6, 0.4])

    training, run = stand_in.begin(
        tmp_path / "run", evaluate=lambda _: Metrics({"AP": next(precisions), "AP50": 0.5}, {})
    )
    training.train()

    assert run.best_epoch is not None
    assert run.best_epoch.epoch == 2
    assert run.best_epoch.fitness == pytest.approx(0.9 * 0.6 + 0.1 * 0.5)
    assert read_tensors(run.best)[1]["extra"].startswith('{"epoch": 2,')
    assert read_tensors(run.last)[1]["extra"].startswith('{"epoch": 3,')


def test_averaged_weights_are_saved_and_measured(stand_in: ModuleType, tmp_path: Path) -> None:
    measured = []
    detector = stand_in.StandInDetector()

    def evaluate(model: nn.Module) -> Metrics:
        measured.append(model)
        return Metrics({"AP": 0.5, "AP50": 0.5}, {})

    training, run = stand_in.begin(tmp_path / "run", detector=detector, evaluate=evaluate)
    training.train()

    saved = read_tensors(run.last)[0]["head.weight"]
    assert measured == [training.averaged] * 3
    assert saved.equal(training.averaged.state_dict()["head.weight"])
    assert not saved.equal(detector.head.weight.detach())


def test_snapshots_are_kept_of_the_plain_weights_at_their_epochs_and_at_the_end(
    stand_in: ModuleType, tmp_path: Path
) -> None:
    plain: dict[int, Tensor] = {}
    detector = stand_in.StandInDetector()

    class Watcher(Observer):
        @hookimpl
        def epoch_finished(self, epoch: int) -> None:
            plain[epoch] = detector.head.weight.detach().clone()

    settings = {"epochs": 5, "snapshot_every": 2}
    training, run = stand_in.begin(tmp_path / "run", detector=detector, settings=settings, observers=[Watcher()])
    training.train()

    kept = sorted(run.directory.glob("epoch-*.safetensors"))
    assert [path.name for path in kept] == [f"epoch-000{epoch}.safetensors" for epoch in (2, 4, 5)]
    for path, epoch in zip(kept, (2, 4, 5), strict=True):
        tensors, metadata = read_tensors(path)
        assert tensors["head.weight"].equal(plain[epoch])
        assert json.loads(metadata["extra"])["epoch"] == epoch


def test_snapshot_that_a_killed_run_did_not_write_is_there_once_it_resumed(
    stand_in: ModuleType, tmp_path: Path
) -> None:
    settings = {"epochs": 2, "snapshot_every": 1}
    training, run = stand_in.begin(tmp_path / "run", settings=settings)
    training.train()
    written = read_tensors(run.snapshot(2))[0]["head.weight"]
    run.snapshot(2).unlink()

    stand_in.begin(tmp_path / "run", settings=settings, resume=True)

    assert read_tensors(run.snapshot(2))[0]["head.weight"].equal(written)


def test_evaluation_is_at_its_epochs_and_at_the_end(stand_in: ModuleType, tmp_path: Path) -> None:
    training, run = stand_in.begin(tmp_path / "run", settings={"epochs": 5, "evaluate_every": 2})

    training.train()

    assert [record.epoch for record in run.history if record.metrics] == [2, 4, 5]


def test_training_leaves_no_trace_in_the_process(stand_in: ModuleType, tmp_path: Path) -> None:
    detector = stand_in.StandInDetector()
    training, _ = stand_in.begin(tmp_path / "run", detector=detector, settings={"epochs": 1})

    training.train()

    assert not torch.are_deterministic_algorithms_enabled()
    assert "forward" not in vars(detector)


def test_precision_may_change_between_runs(stand_in: ModuleType, tmp_path: Path) -> None:
    for precision in ("float32", "bfloat16", "float32"):
        training, run = stand_in.begin(
            tmp_path / f"run-{len(list(tmp_path.iterdir()))}", settings={"precision": precision}
        )
        training.train()

        assert run.status == "finished"
