"""From a recipe to a detector: components are found, their settings checked, and wired by FeatureSpec."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from detloom.detector import Detector
from detloom.errors import RecipeError
from detloom.interfaces import Assigner, Backbone, Criterion, Head, Neck, ReparamPass
from detloom.kinds import Kind
from detloom.recipe import ASSEMBLER_SETTINGS, PASSES, USE, Recipe, load_recipe
from detloom.reparam import fold
from detloom.settings import settings_model, validated
from detloom.shapes import ShapesOnly, shapes_only
from detloom.workshop import Workshop, workshop

__all__ = ["DEFAULT_CLASSES", "CheckReport", "assemble", "build", "check"]

DEFAULT_CLASSES = 80
"""Classes of a detector whose recipe and data say nothing: COCO's."""

REQUIRED = (Kind.BACKBONE, Kind.HEAD, Kind.ASSIGNER, Kind.CRITERION)


def assemble(
    source: str | Recipe | Any,
    overrides: Mapping[str, Any] | None = None,
    *,
    num_classes: int | None = None,
    names: Sequence[str] | None = None,
    shop: Workshop | None = None,
) -> Detector:
    """Compose a detector from a recipe.

    Args:
        source: A bundled name, a path, or a recipe.
        overrides: Values by dotted key, as ``{"head.num_classes": 3}``.
        num_classes: Number of classes, for a recipe that does not state one.
        names: Class names; their number is the number of classes.
        shop: Where components are looked up; the environment's workshop when not given.

    Raises:
        RecipeError: All mistakes together, each with its file and table.
    """
    recipe = load_recipe(source, overrides, shop=shop)
    count = _class_count(recipe, num_classes, names)
    slots = _Slots(recipe, shop or workshop())
    slots.check()
    backbone: Backbone = slots.build(Kind.BACKBONE)
    specs = backbone.out_specs
    neck: Neck | None = None
    if Kind.NECK in recipe.tables:
        neck = slots.build(Kind.NECK, specs)
        specs = neck.out_specs
    head: Head = slots.build(Kind.HEAD, specs, count)
    assigner: Assigner = slots.build(Kind.ASSIGNER)
    criterion: Criterion = slots.build(Kind.CRITERION)
    objections = [
        f"{recipe.where(kind)}: '{recipe.tables[kind][USE]}' cannot serve the head "
        f"'{recipe.tables[Kind.HEAD][USE]}': {objection}"
        for kind, objection in (
            (Kind.ASSIGNER, assigner.objection(head.traits)),
            (Kind.CRITERION, criterion.objection(head.traits)),
        )
        if objection
    ]
    if objections:
        raise RecipeError("\n".join(objections))
    return Detector(
        backbone,
        neck,
        head,
        assigner,
        criterion,
        names=tuple(names) if names else tuple(str(index) for index in range(count)),
        recipe=recipe,
        passes=slots.build_passes(),
    )


def build(kind: Kind, table: Mapping[str, Any], *args: Any, where: str = "", shop: Workshop | None = None) -> Any:
    """Build one component from its table.

    Args:
        kind: The slot.
        table: ``use`` and the settings.
        args: What the kind's constructor takes first.
        where: File and table, put before complaints.
        shop: Where components are looked up; the environment's workshop when not given.

    Raises:
        RecipeError: The name or a setting is wrong.
    """
    where = where or f"[{kind}]"
    settings = {key: value for key, value in table.items() if key not in (USE, *ASSEMBLER_SETTINGS.get(kind, {}))}
    cls = (shop or workshop()).component(kind, table[USE], where=where)
    checked, complaints = validated(settings_model(cls), settings, where)
    if checked is None:
        raise RecipeError("\n".join(complaints))
    try:
        return cls(*args, **{name: getattr(checked, name) for name in checked.model_fields_set})
    except RecipeError as error:
        raise RecipeError(f"{where}: {error}") from error


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What a recipe amounts to, found without data or weights.

    Attributes:
        recipe: Its name.
        num_classes: As assembled.
        image_size: Height and width for which operations are counted.
        strides: Of the lead levels.
        training_parameters: Trainable numbers while training.
        deployed_parameters: Numbers after the recipe's reparam passes.
        training_gflops: Operations of one picture in 1e9, a multiply-add as two, convolutions and products alone.
        deployed_gflops: The same after the passes.
        warnings: What works, but probably not as meant.
    """

    recipe: str
    num_classes: int
    image_size: tuple[int, int]
    strides: tuple[int, ...]
    training_parameters: int
    deployed_parameters: int
    training_gflops: float
    deployed_gflops: float
    warnings: tuple[str, ...]


def check(
    source: str | Recipe | Any,
    overrides: Mapping[str, Any] | None = None,
    *,
    num_classes: int | None = None,
    shop: Workshop | None = None,
) -> CheckReport:
    """Build a recipe on the meta device and count; needs no data and no weights.

    Raises:
        RecipeError: All mistakes together.
    """
    shop = shop or workshop()
    recipe = load_recipe(source, overrides, shop=shop)
    with shapes_only() as counter:
        detector = assemble(recipe, num_classes=num_classes, shop=shop)
        slots = _Slots(recipe, shop)
        for kind in (Kind.EMA, Kind.EVALUATOR, Kind.DATASET):
            slots.check_settings(kind)
        slots.raise_complaints()
        size = recipe.data.image_size
        height, width = (size, size) if isinstance(size, int) else size
        image_BCHW = torch.zeros(1, 3, height, width)
        complaint = _size_complaint(recipe, height, width, detector.max_stride)
        if complaint:
            raise RecipeError(complaint)
        _check_optimizer(recipe, detector)
        # The training form is counted with its auxiliary branches, but without batch statistics.
        training = _count(detector.train(), image_BCHW, counter)
        folded, report = fold(detector, detector.passes)
        deployed = _count(folded, image_BCHW, counter)
    return CheckReport(
        recipe=recipe.name,
        num_classes=detector.head.num_classes,
        image_size=(height, width),
        strides=detector.strides,
        training_parameters=training[0],
        deployed_parameters=deployed[0],
        training_gflops=training[1],
        deployed_gflops=deployed[1],
        warnings=(*_warnings(recipe), *report.warnings),
    )


class _Slots:
    """Builds the slots of one recipe and collects complaints about all of them."""

    def __init__(self, recipe: Recipe, shop: Workshop) -> None:
        self._recipe = recipe
        self._shop = shop
        self._complaints: list[str] = []

    def check(self) -> None:
        """Complain of all slots at once, before any of them is built."""
        for kind in REQUIRED:
            if kind not in self._recipe.tables:
                known = ", ".join(self._shop.names(kind))
                self._complaints.append(
                    f"{self._recipe.name}: a detector needs a {kind}; add [{kind}] with `use`, one of: {known}"
                )
        for kind in (*REQUIRED, Kind.NECK):
            self.check_settings(kind)
        self.raise_complaints()

    def check_settings(self, kind: Kind) -> None:
        """Complain of the settings of one slot, if the recipe fills it."""
        table = self._recipe.tables.get(kind)
        if table is None:
            return
        settings = {key: value for key, value in table.items() if key not in (USE, *ASSEMBLER_SETTINGS.get(kind, {}))}
        cls = self._shop.component(kind, table[USE], where=self._recipe.where(kind, USE))
        self._complaints += validated(settings_model(cls), settings, partial(self._recipe.where, kind))[1]

    def raise_complaints(self) -> None:
        """Raise what was found, all together."""
        if self._complaints:
            raise RecipeError("\n".join(self._complaints))

    def build(self, kind: Kind, *args: Any) -> Any:
        """Build the component of a slot."""
        return build(kind, self._recipe.tables[kind], *args, where=self._recipe.where(kind), shop=self._shop)

    def build_passes(self) -> tuple[ReparamPass, ...]:
        """Build the reparam passes, in the recipe's order."""
        where = self._recipe.where(Kind.REPARAM)
        passes = self._recipe.tables.get(Kind.REPARAM, {}).get(PASSES, [])
        return tuple(
            build(Kind.REPARAM, {USE: each} if isinstance(each, str) else each, where=where, shop=self._shop)
            for each in passes
        )


def _class_count(recipe: Recipe, num_classes: int | None, names: Sequence[str] | None) -> int:
    stated = recipe.tables.get(Kind.HEAD, {}).get("num_classes")
    given = len(names) if names else num_classes
    if stated is not None and given is not None and stated != given:
        raise RecipeError(
            f"{recipe.where(Kind.HEAD)}: num_classes is {stated}, but the data or the caller has {given} classes; "
            "leave num_classes out to take the data's"
        )
    return int(stated or given or DEFAULT_CLASSES)


def _size_complaint(recipe: Recipe, height: int, width: int, stride: int) -> str | None:
    if height % stride == 0 and width % stride == 0:
        return None
    nearest = [max(stride, round(side / stride) * stride) for side in (height, width)]
    return (
        f"{recipe.where('data')}: image_size is {height} x {width}, but this detector needs multiples of its largest "
        f"stride, {stride}; the nearest is {nearest[0]} x {nearest[1]}"
    )


def _check_optimizer(recipe: Recipe, detector: Detector) -> None:
    # Asking timm takes a second; the default it has.
    if recipe.train.optimizer != type(recipe.train).model_fields["optimizer"].default:
        from detloom.engine.optimise import build_optimizer

        build_optimizer(detector, recipe.train)


def _count(detector: Detector, image_BCHW: Tensor, counter: ShapesOnly) -> tuple[int, float]:
    before = counter.operations
    with _statistics_kept(detector), torch.no_grad():
        detector(image_BCHW)
    parameters = sum(parameter.numel() for parameter in detector.parameters())
    return parameters, (counter.operations - before) / 1e9


@contextmanager
def _statistics_kept(detector: Detector) -> Iterator[None]:
    # One picture of one pixel per cell has no variance; norm layers need not be in training mode to be counted.
    norms = [module for module in detector.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]  # noqa: SLF001 - torch has no public name for all batch norms
    modes = [norm.training for norm in norms]
    for norm in norms:
        norm.eval()
    try:
        yield
    finally:
        for norm, mode in zip(norms, modes, strict=True):
            norm.train(mode)


def _warnings(recipe: Recipe) -> Iterator[str]:
    if not recipe.tables.get(Kind.REPARAM, {}).get(PASSES):
        yield f"{recipe.name}: no reparam passes; the deployed form is the training form"
