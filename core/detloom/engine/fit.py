"""Train a detector: from a recipe and a data set to a run."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn

from detloom.artifacts import read_artifact, transfer_
from detloom.assembly import assemble, build
from detloom.data.faults import counted_faults, faults_of, refuse_faults
from detloom.data.loader import Loader, num_workers
from detloom.data.records import Annotations
from detloom.data.splits import open_splits
from detloom.detector import Detector
from detloom.engine.anchoring import other_anchors, with_fitting_anchors
from detloom.engine.loop import Training
from detloom.engine.preparation import Prepared, prepare
from detloom.engine.processes import open_accelerator
from detloom.engine.progress import RunView, open_view
from detloom.engine.run import Run, check_directory, has_state, open_run, read_run
from detloom.engine.settings import TrainSettings
from detloom.engine.statistics import renew_statistics_, training_pictures
from detloom.errors import ArtifactError
from detloom.interfaces import Ema, Metrics, Observer
from detloom.kinds import Kind
from detloom.recipe import OBSERVERS, USE, Recipe, load_recipe

__all__ = ["fit", "resume"]


def fit(
    recipe: str | Path | Recipe,
    *,
    data: str | Path,
    out: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    resume: bool = False,
    plugins: Sequence[str | Path] = (),
    observers: Sequence[Observer] = (),
    progress: bool = True,
) -> Run:
    """Train a detector and return its run.

    Ctrl-C ends the run cleanly after the step at hand: its status is then ``interrupted``, and
    ``resume`` goes on with it. Under ``torchrun`` or ``accelerate launch`` each process calls this
    with the same arguments, and they train together.

    Args:
        recipe: A bundled name, a path, or a recipe.
        data: The data set's folder or file.
        out: The run's directory; ``runs/NAME-N`` when not given.
        overrides: Values by dotted key, as ``{"train.epochs": 10}``.
        resume: Go on with the run in ``out``, which must have the same recipe.
        plugins: Files of plugins that are run, beside those that a recipe's file names.
        observers: Followers of the run beside those of the recipe.
        progress: Show bars on a terminal, lines elsewhere.

    Raises:
        RecipeError: The recipe cannot be used.
        DataError: The data cannot be used.
        ArtifactError: The run's directory cannot be used, or not be written any more.
        TrainingError: A loss is not finite, or memory is short.
    """
    loaded = load_recipe(recipe, overrides, plugins=plugins)
    settings = loaded.train
    check_directory(out, resume=resume)
    train, val = open_splits(data, loaded.data, loaded.tables.get(Kind.DATASET), seed=settings.seed)
    refuse_faults((train, val), skip_bad=loaded.data.skip_bad)
    accelerator = open_accelerator(settings)
    view = open_view(is_shown=progress and accelerator.is_main_process)
    loaded = with_fitting_anchors(loaded, train, out, resume=resume, view=view)
    followers = (*_observers(loaded), *observers)
    evaluate = _evaluation(loaded, val)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        detector = assemble(loaded, names=train.names)
        loader = _loader(loaded, detector, train, accelerator)
        if notice := counted_faults(faults_of((train, val))):
            view.said(f"{data}: {notice}; `detloom check --data` lists them")
        if not (resume and has_state(out)):
            _start_from(detector, loaded, view)
        prepared = prepare(
            detector,
            len(loader),
            settings=settings,
            accelerator=accelerator,
            make_ema=_ema_maker(loaded),
            observers=followers if accelerator.is_main_process else (),
        )
        for notice in _idle(settings, prepared):
            view.said(notice)
        # Last, so that a start that fails leaves nothing behind.
        run = _open(loaded, accelerator, data=str(data), names=train.names, out=out, resume=resume)
        try:
            training = Training(
                prepared,
                loader,
                run,
                settings=settings,
                evaluate=evaluate,
                view=view,
                renew_statistics=lambda model: _renew_statistics(model, loaded, train),
            )
            if resume:
                training.resume()
            training.train()
            if accelerator.is_main_process and run.status in ("finished", "stopped") and run.best_epoch is not None:
                _report(run, detector, val)
        finally:
            run.close()
    return run


def _idle(settings: TrainSettings, prepared: Prepared) -> Iterator[str]:
    """Yield what is asked for and would come after the end."""
    steps = prepared.schedule.steps
    ema = prepared.ema
    if ema is not None and not any(0 < ema.decay_at(step) < 1 for step in range(1, steps + 1)):
        yield f"[ema] averages no two steps: the run has {steps} optimiser steps; let it start earlier, or more often"
    if settings.snapshot_every > settings.epochs:
        yield f"train.snapshot_every = {settings.snapshot_every} keeps nothing of a run of {settings.epochs} epochs"


def resume(
    directory: str | Path,
    *,
    data: str | Path | None = None,
    plugins: Sequence[str | Path] = (),
    progress: bool = True,
) -> Run:
    """Go on with a run, with the recipe and the data that it was begun with.

    Args:
        directory: The run's directory.
        data: Where the data set lies now, if it was moved.
        plugins: Files of plugins that are run. Those that the run's recipe names are not, unless given here.
        progress: Show bars on a terminal, lines elsewhere.

    Raises:
        ArtifactError: There is no run that has begun.
    """
    recipe, old_data = read_run(directory)
    data = old_data if data is None else data
    return fit(recipe, data=data, out=directory, resume=True, plugins=plugins, progress=progress)


def _loader(recipe: Recipe, detector: Detector, train: Annotations, accelerator: Accelerator) -> Loader:
    world = accelerator.num_processes
    return Loader(
        train,
        image_size=recipe.data.image_size,
        batch_size=recipe.train.batch,
        augment=recipe.augment,
        stride=detector.max_stride,
        seed=recipe.train.seed,
        epochs=recipe.train.epochs,
        workers=num_workers(recipe.data.workers, accelerator.device, world),
        cache=recipe.data.cache,
        rank=accelerator.process_index,
        world=world,
        pin_memory=accelerator.device.type == "cuda",
    )


def _open(
    recipe: Recipe,
    accelerator: Accelerator,
    *,
    data: str,
    names: Sequence[str],
    out: str | Path | None,
    resume: bool,
) -> Run:
    """Open the run's directory in the main process; the others are told where it is."""
    run = None
    if accelerator.is_main_process:
        run = open_run(recipe, data=data, names=names, out=out, resume=resume)
    if accelerator.num_processes == 1 and run is not None:
        return run
    where = [str(run.directory) if run is not None else ""]
    broadcast_object_list(where)
    if run is None:
        weights = {str(name): weight for name, weight in recipe.train.fitness.items()}
        run = Run(Path(where[0]), recipe, tuple(names), data, weights, recipe.train.epochs)
    return run


def _observers(recipe: Recipe) -> list[Observer]:
    return [
        build(Kind.OBSERVER, {**table, USE: name}, where=recipe.where(f"{OBSERVERS}.{name}"))
        for name, table in recipe.tables.get(OBSERVERS, {}).items()
    ]


def _ema_maker(recipe: Recipe) -> Callable[[nn.Module], Ema] | None:
    table = recipe.tables.get(Kind.EMA)
    if table is None:
        return None
    return lambda model: build(Kind.EMA, table, model, where=recipe.where(Kind.EMA))


def _evaluation(recipe: Recipe, val: Annotations) -> Callable[[nn.Module], Metrics] | None:
    if recipe.train.evaluate_every == 0:
        return None
    from detloom.engine.evaluate import build_evaluator, evaluate

    # Built before training, so that a mistake in its settings does not wait for the first epoch's end.
    evaluator = build_evaluator(recipe, val)
    return lambda model: evaluate(model, val, recipe, evaluator=evaluator)


def _renew_statistics(model: nn.Module, recipe: Recipe, train: Annotations) -> None:
    """Give the average statistics of its own, but for frozen parts, which have learned with theirs."""
    assert isinstance(model, Detector)  # noqa: S101 - narrows the type
    renew_statistics_(model, training_pictures(model, train, recipe), keep=recipe.train.freeze)


def _report(run: Run, detector: Detector, val: Annotations) -> None:
    """Draw the curves and the confusion of the best weights."""
    from detloom.engine.evaluate import evaluate

    detector.load_state_dict(dict(read_artifact(run.best).tensors))
    evaluate(detector.eval(), val, run.recipe, report=run.directory / "report")


def _start_from(detector: Detector, recipe: Recipe, view: RunView) -> None:
    source = recipe.train.init_from
    if source is not None:
        try:
            artifact = read_artifact(source)
            taken = transfer_(detector, artifact)
        except ArtifactError as error:
            what = str(error).removeprefix(f"{source}: ")
            raise ArtifactError(
                f"{recipe.where('train', 'init_from')}: 'init_from' is {source}: {what}\n"
                "  Give the path of an artifact, as the best.safetensors of a run, or leave init_from out."
            ) from error
        view.said(f"{source}: {taken}")
        if differs := other_anchors(recipe, artifact.recipe):
            view.said(f"{source}: {differs}")
