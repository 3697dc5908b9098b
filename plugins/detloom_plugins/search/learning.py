"""The training of a supernet: an ordinary run of the engine, whose turns alternate.

Its directory has the state from which a killed one resumes, and on a CPU it then ends with the same probabilities.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from timm.optim._optim_factory import create_optimizer_v2

from detloom.data.loader import Loader, num_workers
from detloom.data.records import Annotations
from detloom.data.splits import hold_out
from detloom.engine.loop import Batches, Training
from detloom.engine.optimise import Schedule, build_optimizer
from detloom.engine.preparation import Prepared, observing
from detloom.engine.processes import open_accelerator
from detloom.engine.progress import open_view
from detloom.engine.run import Run, open_run
from detloom.engine.settings import TrainSettings
from detloom.errors import RecipeError
from detloom.kinds import Kind
from detloom.recipe import OBSERVERS, Recipe
from detloom_plugins.search.alternation import AlternatingBatches, AlternatingOptimizer
from detloom_plugins.search.supernet import Cost, Plan, Supernet
from detloom_plugins.search.weaving import Woven

__all__ = ["LogitSettings", "batches_of", "learn", "supernet_recipe"]

HALF = 0.5


@dataclass(frozen=True, slots=True)
class LogitSettings:
    """How the logits learn.

    Attributes:
        learning_rate: Of Adam.
        weight_decay: Of Adam; it draws the options together.
        warm_share: Of the epochs at the start, in which the weights learn alone.
        temperature: Of the first draws.
        final_temperature: Of the last.
    """

    learning_rate: float
    weight_decay: float
    warm_share: float
    temperature: float
    final_temperature: float


def supernet_recipe(recipe: Recipe, epochs: int) -> Recipe:
    """Return the recipe of a supernet's run: that of the first point, without what concerns finished models alone."""
    plain: dict[str, Any] = {
        "train.epochs": epochs,
        "train.nominal_batch": 0,
        "train.evaluate_every": 0,
        "train.save_every": 1,
        "train.snapshot_every": 0,
    }
    if recipe.train.precision == "float16":
        # Its gradients are scaled, and by one factor for all; bfloat16 needs no factor.
        plain["train.precision"] = "auto"
    changed = recipe.with_overrides(plain)
    tables = {name: table for name, table in changed.tables.items() if name not in (Kind.EMA, OBSERVERS)}
    tables["train"] = {key: value for key, value in tables["train"].items() if key not in ("init_from", "freeze")}
    return replace(changed, name=f"{recipe.name}-supernet", tables=tables)


def batches_of(train: Annotations, recipe: Recipe, stride: int, epochs: int) -> tuple[Loader, Loader]:
    """Return the batches of the weights and those of the logits, each of a half of the pictures.

    Args:
        train: The training split.
        recipe: Whose canvas, batch, augmentation and seed are used.
        stride: The largest of the network.
        epochs: How many each will have at most.
    """
    loaders = [
        Loader(
            half,
            image_size=recipe.data.image_size,
            batch_size=recipe.train.batch,
            augment=recipe.augment,
            stride=stride,
            seed=recipe.train.seed,
            epochs=epochs,
            workers=num_workers(recipe.data.workers, "cuda" if torch.cuda.is_available() else "cpu", 2),
            cache=recipe.data.cache,
        )
        for half in hold_out(train, HALF, recipe.train.seed)
    ]
    return loaders[0], loaders[1]


def learn(
    woven: Woven,
    batches: tuple[Batches, Batches],
    *,
    recipe: Recipe,
    logits: LogitSettings,
    cost: Cost | None,
    data: str,
    names: tuple[str, ...],
    directory: Path,
    progress: bool = False,
) -> tuple[Supernet, Run]:
    """Train a supernet, or go on with one that was killed; return it with its run.

    Args:
        woven: The network of all options; changed in place.
        batches: Of the weights and of the logits.
        recipe: Of the run, see ``supernet_recipe``.
        logits: How the logits learn.
        cost: What points cost, where that matters.
        data: Where the pictures are from, for the record.
        names: Class names by index.
        directory: Of the run.
        progress: Show bars on a terminal, lines elsewhere.

    Raises:
        RecipeError: There are several processes.
        KeyboardInterrupt: It was asked to stop, and can be gone on with.
        TrainingError: A loss is not finite, or memory is short.
    """
    settings = recipe.train
    warm_epochs = round(settings.epochs * logits.warm_share)
    turns = 2 * len(batches[0])
    plan = Plan(
        turns=turns * settings.epochs,
        warm=turns * warm_epochs,
        temperature=logits.temperature,
        final_temperature=logits.final_temperature,
        seed=settings.seed,
    )
    supernet = Supernet(woven, plan, cost)
    alternating = AlternatingBatches(*batches, warm_epochs=warm_epochs, begin_turn=supernet.begin_turn)
    directory.mkdir(parents=True, exist_ok=True)
    prepared = _prepared(supernet, len(alternating), settings, logits)
    run = open_run(recipe, data=data, names=names, out=directory, resume=True)
    try:
        training = Training(
            prepared, alternating, run, settings=settings, evaluate=None, view=open_view(is_shown=progress)
        )
        training.resume()
        if len(run.history) < settings.epochs:
            training.train()
    finally:
        run.close()
    if len(run.history) < settings.epochs:
        raise KeyboardInterrupt
    return supernet, run


def _prepared(supernet: Supernet, num_turns: int, settings: TrainSettings, logits: LogitSettings) -> Prepared:
    accelerator = open_accelerator(settings)
    if accelerator.num_processes > 1:
        raise RecipeError(
            "[search] 'gradient': a supernet is trained in one process; start the search without torchrun or "
            "accelerate launch"
        )
    layout = torch.channels_last if settings.channels_last else torch.contiguous_format
    supernet.to(accelerator.device).to(memory_format=layout)
    of_logits: Any = create_optimizer_v2(
        [{"params": list(supernet.logits), "weight_decay": logits.weight_decay}],
        opt="adam",
        lr=logits.learning_rate,
        # Those of DARTS, appendix A.1.1: what is right for one draw says little of the next.
        betas=(0.5, 0.999),
    )
    optimizer = AlternatingOptimizer(build_optimizer(supernet.network, settings), of_logits)
    return Prepared(
        accelerator=accelerator,
        plain=supernet,
        model=accelerator.prepare(supernet),
        optimizer=optimizer,
        schedule=Schedule(settings, num_turns),
        frozen=(),
        ema=None,
        hooks=observing(()),
    )
