"""From a recipe to a detector: components are found, their settings checked, and wired by FeatureSpec."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from zlib import crc32

import torch
from pydantic import BaseModel
from torch import Tensor

from detloom.building import build, settings_complaints, without_initial_weights
from detloom.data.settings import AugmentSettings, DataSettings, part_complaint, size_complaint
from detloom.detector import Detector
from detloom.engine.settings import TrainSettings
from detloom.errors import RecipeError, suggest, with_article
from detloom.interfaces import Assigner, Backbone, Criterion, Head, Neck, ReparamPass
from detloom.kinds import Kind
from detloom.recipe import OBSERVERS, PASSES, SINGLE_KINDS, USE, Recipe, load_recipe, plugin_hint, resolve_recipe
from detloom.reparam import fold
from detloom.scaling import changes, scaled, scaling_explained
from detloom.settings import validated
from detloom.shapes import ShapesOnly, shapes_only
from detloom.wiring import breaks_located
from detloom.workshop import Workshop, workshop

__all__ = ["DEFAULT_CLASSES", "CheckReport", "assemble", "build", "check", "mistakes"]

DEFAULT_CLASSES = 80
"""Classes of a detector whose recipe and data say nothing: COCO's."""

BUILT_LATER = "Whether the parts fit together, freeze and the size of pictures are checked when this is mended."

Section = TypeVar("Section", bound=BaseModel)

REQUIRED = (Kind.BACKBONE, Kind.HEAD, Kind.ASSIGNER, Kind.CRITERION)


def assemble(
    source: str | Recipe | Any,
    overrides: Mapping[str, Any] | None = None,
    *,
    num_classes: int | None = None,
    names: Sequence[str] | None = None,
    plugins: Sequence[str | Path] = (),
    shop: Workshop | None = None,
) -> Detector:
    """Compose a detector from a recipe.

    Args:
        source: A bundled name, a path, or a recipe.
        overrides: Values by dotted key, as ``{"head.num_classes": 3}``.
        num_classes: Number of classes, for a recipe that does not state one.
        names: Class names; their number is the number of classes.
        plugins: Files of plugins that are run, beside those that a recipe's file names.
        shop: Where components are looked up; the environment's workshop when not given.

    Raises:
        RecipeError: All mistakes together, each with its file and table.
    """
    shop = shop or workshop()
    given = load_recipe(source, overrides, plugins=plugins, shop=shop, scale=False)
    recipe = scaled(given, shop)
    with scaling_explained(given, recipe, shop):
        return _assembled(recipe, shop, num_classes, names)


def _assembled(recipe: Recipe, shop: Workshop, num_classes: int | None, names: Sequence[str] | None) -> Detector:
    count = _class_count(recipe, num_classes, names)
    slots = _Slots(recipe, shop)
    complaints = slots.complaints((*REQUIRED, Kind.NECK))
    if complaints:
        raise RecipeError("\n".join((*complaints, *plugin_hint(recipe, shop))))
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
        f"{recipe.where(kind, USE)}: '{recipe.tables[kind][USE]}' cannot serve the head "
        f"'{recipe.tables[Kind.HEAD][USE]}': {objection}"
        for kind, objection in (
            (Kind.ASSIGNER, assigner.objection(head.traits) or _doubled(head, assigner)),
            (Kind.CRITERION, criterion.objection(head.traits)),
            (Kind.ANCHORS, _anchorless(recipe, head)),
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
        scaling: The settings that ``[scaling]`` changed, by dotted key: as given, and as made.
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
    scaling: Mapping[str, tuple[Any, Any]] = field(default_factory=dict)


def check(
    source: str | Recipe | Any,
    overrides: Mapping[str, Any] | None = None,
    *,
    num_classes: int | None = None,
    plugins: Sequence[str | Path] = (),
    shop: Workshop | None = None,
) -> CheckReport:
    """Build a recipe on the meta device and count; needs no data and no weights.

    Raises:
        RecipeError: All mistakes together.
    """
    shop = shop or workshop()
    given, complaints = resolve_recipe(source, overrides, shop, plugins)
    complaints += mistakes(given, shop)
    if complaints:
        # A name is looked up with the structure and again with its settings.
        raise RecipeError("\n".join((*dict.fromkeys(complaints), BUILT_LATER)))
    recipe = scaled(given, shop)
    with scaling_explained(given, recipe, shop):
        report = _checked(recipe, shop, num_classes)
    return replace(report, scaling=changes(given, recipe, shop))


def mistakes(recipe: Recipe, shop: Workshop) -> list[str]:
    """Return what is wrong with names and settings, each by itself; whether they fit is found by ``check``."""
    return [*_Slots(recipe, shop).complaints(SINGLE_KINDS), *_plain_complaints(recipe)]


def _checked(recipe: Recipe, shop: Workshop, num_classes: int | None) -> CheckReport:
    with shapes_only() as counter:
        detector = assemble(without_initial_weights(recipe, shop), num_classes=num_classes, shop=shop)
        size = recipe.data.image_size
        height, width = (size, size) if isinstance(size, int) else size
        image_BCHW = torch.zeros(1, 3, height, width)
        complaints = list(_complaints_of_built(recipe, detector, height, width))
        if complaints:
            raise RecipeError("\n".join(complaints))
        # The training form is counted with its auxiliary branches, but without batch statistics.
        training = _count(recipe.name, detector.train(), image_BCHW, counter)
        folded, report = fold(detector, detector.passes)
        deployed = _count(recipe.name, folded, image_BCHW, counter)
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
    """Builds the slots of one recipe, each from random numbers of its own."""

    def __init__(self, recipe: Recipe, shop: Workshop) -> None:
        self._recipe = recipe
        self._shop = shop
        # Swapping one component leaves the initial weights of the others as they were.
        self._seed = int(torch.randint(2**31, (), device="cpu")) if torch.get_default_device().type != "meta" else 0

    def complaints(self, kinds: Sequence[Kind]) -> list[str]:
        """Return what is missing, or wrong with the settings of slots, before any of them is built."""
        recipe, shop = self._recipe, self._shop
        complaints = [
            f"{recipe.name}: a detector needs {with_article(kind)}; add [{kind}] with `use`, one of: "
            f"{', '.join(shop.names(kind))}"
            for kind in REQUIRED
            if kind not in recipe.tables
        ]
        for kind in kinds:
            if isinstance(recipe.tables.get(kind), Mapping):
                complaints += settings_complaints(kind, recipe.tables[kind], partial(recipe.where, kind), shop)
        of_passes = recipe.where(Kind.REPARAM, PASSES)
        for each in self._passes():
            complaints += settings_complaints(Kind.REPARAM, each, lambda _key: of_passes, shop)
        for name, table in _table(recipe, OBSERVERS).items():
            if name == USE:
                continue
            where = partial(recipe.where, f"{OBSERVERS}.{name}")
            settings = table if isinstance(table, Mapping) else {}
            complaints += settings_complaints(Kind.OBSERVER, {**settings, USE: name}, where, shop)
        return complaints

    def build(self, kind: Kind, *args: Any) -> Any:
        """Build the component of a slot."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed ^ crc32(kind.encode()))
            return build(kind, self._recipe.tables[kind], *args, where=self._recipe.where(kind), shop=self._shop)

    def build_passes(self) -> tuple[ReparamPass, ...]:
        """Build the reparam passes, in the recipe's order."""
        where = self._recipe.where(Kind.REPARAM, PASSES)
        return tuple(build(Kind.REPARAM, each, where=where, shop=self._shop) for each in self._passes())

    def _passes(self) -> list[Mapping[str, Any]]:
        passes = _table(self._recipe, Kind.REPARAM).get(PASSES, [])
        named = [{USE: each} if isinstance(each, str) else each for each in passes if isinstance(passes, list)]
        return [each for each in named if isinstance(each, Mapping)]


def _doubled(head: Head, assigner: Assigner) -> str | None:
    if not head.traits.one_to_one or assigner.one_to_one:
        return None
    return "it gives a target several priors, but what this head finds is not suppressed: take a one-to-one assigner"


def _anchorless(recipe: Recipe, head: Head) -> str | None:
    if Kind.ANCHORS not in recipe.tables or head.traits.anchors:
        return None
    return "it has no anchors to search; leave [anchors] out"


def _table(recipe: Recipe, section: str) -> Mapping[str, Any]:
    """Return a section; what is no table is complained of with the structure."""
    table = recipe.tables.get(section, {})
    return table if isinstance(table, Mapping) else {}


def _class_count(recipe: Recipe, num_classes: int | None, names: Sequence[str] | None) -> int:
    stated = recipe.tables.get(Kind.HEAD, {}).get("num_classes")
    given = len(names) if names else num_classes
    if stated is not None and given is not None and stated != given:
        raise RecipeError(
            f"{recipe.where(Kind.HEAD, 'num_classes')}: num_classes is {stated}, but the data or the caller has "
            f"{given} classes; leave num_classes out to take the data's"
        )
    return int(stated or given or DEFAULT_CLASSES)


def _plain_complaints(recipe: Recipe) -> Iterator[str]:
    """Yield what is wrong with settings that other libraries or files know, and that are of the right form."""
    table = _table(recipe, "train")
    train, plain = _sound(TrainSettings, table), TrainSettings()
    if (train.optimizer, train.schedule) != (plain.optimizer, plain.schedule):
        # The defaults are known to be right, and asking timm takes a second.
        from detloom.engine.optimise import Schedule, build_optimizer

        asked: list[Callable[[TrainSettings], object]] = [partial(build_optimizer, torch.nn.Linear(2, 2))]
        if "decay_epochs" not in table.keys() - train.model_fields_set:
            # Else it would be missed beside the complaint about its form.
            asked.append(partial(Schedule, batches_per_epoch=1))
        for ask in asked:
            try:
                ask(train)
            except RecipeError as error:
                yield f"{recipe.name} {error}"
    if train.init_from and not Path(train.init_from).is_file():
        yield (
            f"{recipe.where('train', 'init_from')}: 'init_from' is {train.init_from}: there is no such file. "
            "Give the path of an artifact, as the best.safetensors of a run."
        )
    if complaint := part_complaint(_sound(DataSettings, _table(recipe, "data"))):
        yield f"{recipe.where('data', 'part')}: {complaint}"
    augment = _sound(AugmentSettings, _table(recipe, "augment"))
    if augment.extra:
        from detloom.data.extra import ExtraTransforms

        try:
            ExtraTransforms(augment.extra, augment.min_side)
        except RecipeError as error:
            yield str(error)


def _sound(model: type[Section], table: Mapping[str, Any]) -> Section:
    """Return a section, with defaults in the place of settings whose form is wrong."""
    kept = {key: value for key, value in table.items() if validated(model, {key: value}, "")[0] is not None}
    settings, _ = validated(model, kept, "")
    assert isinstance(settings, model)  # noqa: S101 - narrows the type: each setting is right by itself
    return settings


def _complaints_of_built(recipe: Recipe, detector: Detector, height: int, width: int) -> Iterator[str]:
    """Yield what is wrong with plain sections in view of the detector."""
    size = size_complaint((height, width), detector.max_stride)
    if size:
        yield f"{recipe.where('data', 'image_size')}: {size}"
    parts = [path for path, _ in detector.named_modules() if path]
    for name in recipe.train.freeze:
        if name not in parts:
            children = ", ".join(path for path, _ in detector.named_children())
            yield (
                f"{recipe.where('train', 'freeze')}: 'freeze': the model has no part '{name}'.{suggest(name, parts)}\n"
                f"  parts: {children}"
            )


def _count(name: str, detector: Detector, image_BCHW: Tensor, counter: ShapesOnly) -> tuple[int, float]:
    before = counter.operations
    with _statistics_kept(detector), torch.no_grad(), breaks_located(detector, name):
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
