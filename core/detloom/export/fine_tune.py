"""A short training of the folded network with its numbers rounded to eight bits, so that it learns to live with that.

The forward pass is that of eight-bit arithmetic, the backward pass ignores the rounding, and the weights that are
learned stay in float: they are exported like any. Data, augmentation, assigner, criterion and optimizer are the
recipe's; the learning rate is low, and falls along a cosine without a warm-up, as the network is trained already.

References: Jacob et al. 2018, arXiv:1712.05877, section 3; Krishnamoorthi 2018, arXiv:1806.08342, section 3.2.

Shape letters: B images, H and W rows and columns.
"""

import copy
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from detloom.data.loader import Loader, num_workers
from detloom.data.records import Annotations
from detloom.detector import Detector
from detloom.engine.evaluate import labels_in
from detloom.engine.loop import Training
from detloom.engine.preparation import prepare
from detloom.engine.processes import open_accelerator
from detloom.engine.progress import RunView
from detloom.engine.run import Run, open_run
from detloom.errors import ExportError
from detloom.export.fake_quantisation import PRODUCTS, Range, rounded_weight, roundings
from detloom.recipe import Recipe, load_recipe

__all__ = ["RATE_SHARE", "fine_tuned", "rounded_"]

RATE_SHARE = 0.01
"""The learning rate, as a share of the recipe's: the weights are trained already, and are to stay where they are."""
FOLLOWING = 0.05
"""Weight of a batch in the running ranges of activations."""


def fine_tuned(
    detector: Detector,
    train: Annotations,
    recipe: Recipe,
    *,
    epochs: int,
    size: tuple[int, int],
    images_BCHW: Tensor,
    view: RunView,
) -> Detector:
    """Return a detector whose weights have learned with eight-bit arithmetic; the one given stays as it is.

    Args:
        detector: Folded, on the CPU.
        train: What to learn from.
        recipe: Whose settings are taken, but for what a fine-tuning has of its own.
        epochs: Times that every picture is seen.
        size: Height and width of the input.
        images_BCHW: RGB in [0, 1], to begin the ranges of activations with.
        view: Shows the training.

    Raises:
        ExportError: Batch norms are left, classes have another order, or it was stopped.
        TrainingError: A loss is not finite, or memory is short.
    """
    _demand_folded(detector)
    if labels_in(train, detector.names) is not None:
        raise ExportError(
            f"--qat-epochs: {train.source} has the detector's classes in another order, and cannot be learned from; "
            f"the order must be {', '.join(detector.names)}"
        )
    settings = load_recipe(
        recipe,
        {
            "data.image_size": list(size),
            # Pictures as they are met in use: as in the last epochs of a training.
            "augment.mosaic_off_epochs": epochs,
            "train.epochs": epochs,
            "train.learning_rate": recipe.train.learning_rate * RATE_SHARE,
            "train.schedule": "cosine",
            "train.final_fraction": 0.1,
            "train.warmup_epochs": 0.0,
            "train.warmup_min_steps": 0,
            "train.freeze": [],
            "train.evaluate_every": 0,
            "train.checkpoint_minutes": 0.0,
            "train.precision": "float32",
        },
    )
    model = copy.deepcopy(detector).train()
    model.requires_grad_(requires_grad=True)
    with (
        torch.random.fork_rng(devices=[]),
        rounded_(model, images_BCHW),
        tempfile.TemporaryDirectory() as folder,
    ):
        torch.manual_seed(settings.train.seed)
        _train(model, train, settings, Path(folder), view)
    return model.cpu().eval()


@contextmanager
def rounded_(model: nn.Module, images_BCHW: Tensor) -> Iterator[None]:
    """Let a model compute with rounded weights and activations, ranges following in training; undone at the end.

    Args:
        model: Changed in place, and as it was afterwards but for what its weights have learned.
        images_BCHW: Where the ranges of activations begin.
    """
    was_training = model.training
    model.eval()
    places = roundings(model, images_BCHW[:1])
    ranges = {place.output: Range() for place in places}
    with _hooked(model, {path: _seeing(seen) for path, seen in ranges.items()}), torch.no_grad():
        for some in torch.split(images_BCHW, 1):
            model(some)
    for seen in ranges.values():
        seen.share = FOLLOWING
    products = {module: list(module._parameters) for module in model.modules() if isinstance(module, PRODUCTS)}  # noqa: SLF001 - torch has no public name for a module's own parameters in order
    for module in products:
        parametrize.register_parametrization(module, "weight", _RoundedWeight(module), unsafe=True)
    try:
        model.train(was_training)
        with _hooked(model, {path: _rounding(seen) for path, seen in ranges.items()}):
            yield
    finally:
        for module, order in products.items():
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
            # What was taken away and put back stands last, and files list weights in order.
            module._parameters = {name: module._parameters[name] for name in order}  # noqa: SLF001 - the same


class _RoundedWeight(nn.Module):
    """What a weight is rounded to, as torch's parametrisations have it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        # In a tuple, so that the module does not become a part of its own part.
        self._of = (module,)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the rounded weight."""
        return rounded_weight(weight, self._of[0])


Hook = Callable[[nn.Module, tuple[object, ...], Tensor], Tensor | None]


def _seeing(seen: Range) -> Hook:
    def hook(_: nn.Module, __: tuple[object, ...], output: Tensor) -> None:
        seen.see_(output)

    return hook


def _rounding(seen: Range) -> Hook:
    def hook(module: nn.Module, _: tuple[object, ...], output: Tensor) -> Tensor:
        if module.training:
            seen.see_(output)
        return seen.grid(output)

    return hook


@contextmanager
def _hooked(model: nn.Module, hooks: dict[str, Hook]) -> Iterator[None]:
    handles = [model.get_submodule(path).register_forward_hook(hook) for path, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _train(model: Detector, train: Annotations, recipe: Recipe, folder: Path, view: RunView) -> None:
    settings = recipe.train
    accelerator = open_accelerator(settings)
    loader = Loader(
        train,
        image_size=recipe.data.image_size,
        batch_size=settings.batch,
        augment=recipe.augment,
        stride=model.max_stride,
        seed=settings.seed,
        epochs=settings.epochs,
        workers=num_workers(recipe.data.workers, accelerator.device),
        cache=recipe.data.cache,
        pin_memory=accelerator.device.type == "cuda",
    )
    prepared = prepare(model, len(loader), settings=settings, accelerator=accelerator, make_ema=None, observers=())
    # The loop writes as it always does; nothing of it is kept, as the export is not resumed.
    run: Run = open_run(recipe, data=str(train.source), names=train.names, out=folder / "run", resume=False)
    try:
        Training(prepared, loader, run, settings=settings, evaluate=None, view=view).train()
    finally:
        run.close()
    if run.status != "finished":
        raise ExportError(f"the fine-tuning was stopped after {run.step} steps; nothing was exported")


def _demand_folded(detector: Detector) -> None:
    left: Sequence[str] = [path for path, module in detector.named_modules() if isinstance(module, _BatchNorm)]
    if left:
        raise ExportError(
            f"--qat-epochs: the fine-tuning starts from a folded network, and in this one {len(left)} batch norms are "
            f"left ({', '.join(left[:3])}); add a pass that fuses them: --pass, and `detloom list reparam`"
        )
