"""Batch norm statistics for weights that were put together, not trained: an average has none of its own.

Reference: Izmailov et al. (2018), arXiv:1803.05407, section 3.2: one more pass over training pictures. How many are
enough, and that batches are averaged alike: Wu and Johnson, Rethinking "Batch" in BatchNorm (2021), arXiv:2105.07576,
section 3.

Shape letters: B images, H and W rows and columns.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from detloom.data.loader import Loader, num_workers
from detloom.data.records import Annotations
from detloom.detector import Detector
from detloom.errors import DataError
from detloom.recipe import Recipe

__all__ = ["MOST_PICTURES", "as_in_evaluation", "renew_statistics_", "running_norms", "training_pictures"]

MOST_PICTURES = 1000
"""Statistics are taken over a random choice of so many training pictures at most."""


def running_norms(model: nn.Module, keep: Sequence[str] = ()) -> dict[str, _BatchNorm]:
    """Return the batch norms that have running statistics, by name, without those in the parts ``keep``."""
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, _BatchNorm)
        and module.running_mean is not None
        and not any(f"{path}.".startswith(f"{part}.") for part in keep)
    }


@torch.no_grad()
def renew_statistics_(model: nn.Module, batches: Iterable[Tensor], *, keep: Sequence[str] = ()) -> int:
    """Replace the running statistics by the mean of those of batches; return how many pictures these had.

    Each picture counts alike, and at each place where a norm is used. Apart from batch norms the model computes as in
    evaluation; auxiliary parts are run, too. A norm that is not run keeps its statistics. Modes are afterwards as they
    were.

    Args:
        model: Called with the batches.
        batches: RGB pictures in [0, 1], ``[B, 3, H, W]``.
        keep: Parts whose statistics stay.
    """
    norms = running_norms(model, keep)
    before = [(norm, {name: entry.clone() for name, entry in norm.named_buffers()}) for norm in norms.values()]
    seen = 0
    counted: Counter[nn.Module] = Counter()

    def count(norm: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        # A cumulative mean in which each picture has the same weight, also where levels share a norm.
        level_BCHW = (*given, *named.values())[0]
        counted[norm] += len(level_BCHW)
        norm.momentum = len(level_BCHW) / counted[norm]  # type: ignore[assignment] # a plain attribute of norms

    with as_in_evaluation(model), ExitStack() as after:
        after.enter_context(torch.autocast(next(model.parameters()).device.type, enabled=False))
        for norm in norms.values():
            after.callback(setattr, norm, "momentum", norm.momentum)
            after.callback(norm.register_forward_pre_hook(count, with_kwargs=True).remove)
            norm.training = True
            norm.reset_running_stats()
        for images_BCHW in batches:
            seen += len(images_BCHW)
            model(images_BCHW)
    for norm, buffers in before:
        if not norm.num_batches_tracked:
            for name, entry in norm.named_buffers():
                entry.copy_(buffers[name])
    return seen


def training_pictures(
    detector: Detector,
    train: Annotations,
    recipe: Recipe,
    *,
    most: int = MOST_PICTURES,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Tensor]:
    """Yield batches of a random choice of training pictures, as the last epoch shows them, on the detector's device.

    Weights have learned behind the statistics of augmented pictures; those of plain ones fit them less well
    (docs/averaging.md has the figures).

    Args:
        detector: Which is to be shown them.
        train: The split.
        recipe: Whose canvas, augmentation, batch, epochs and seed are used.
        most: How many pictures, where there are as many.
        progress: Called after each batch with the batches done and those in all.

    Raises:
        DataError: A picture cannot be read, or there is but one.
    """
    images, settings = train.images, recipe.train
    order = np.random.default_rng(settings.seed).permutation(len(images))[:most]
    if len(order) < 2:
        raise DataError(f"{train.source}: batch norm statistics need at least 2 training pictures, found {len(images)}")
    device = next(detector.parameters()).device
    loader = Loader(
        replace(train, images=tuple(images[index] for index in order)),
        image_size=recipe.data.image_size,
        # One picture alone may have no variance, on a map of one cell.
        batch_size=max(settings.batch, 2),
        augment=recipe.augment,
        stride=detector.max_stride,
        seed=settings.seed,
        epochs=settings.epochs,
        workers=num_workers(recipe.data.workers, device),
        cache="off",
    )
    for done, batch in enumerate(loader.epoch(settings.epochs - 1), 1):
        yield batch.to(device).images_BCHW.float() / 255
        if progress is not None:
            progress(done, len(loader))


@contextmanager
def as_in_evaluation(model: nn.Module) -> Iterator[None]:
    """Let norms and leaves compute as in evaluation, and what is put together of others have its auxiliary outputs.

    Modes are afterwards as before.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    for module in model.modules():
        # Some batch norms have an activation inside.
        if isinstance(module, _NormBase) or not any(module.children()):
            module.training = False
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
