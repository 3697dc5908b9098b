"""Which priors each assigner takes for each object of one picture.

Shape letters: see ``structures``; N boxes of one image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from detloom.assembly import build
from detloom.data.letterbox import Letterbox
from detloom.data.reading import Picture, read_picture
from detloom.data.records import Annotations, ImageRecord
from detloom.detector import Detector
from detloom.errors import DataError, RecipeError, suggest
from detloom.interfaces import Assigner
from detloom.kinds import Kind
from detloom.ops.iou import overlap
from detloom.recipe import USE
from detloom.structures import Assignment, Predictions, Role, Targets

__all__ = ["Explained", "Match", "Method", "explain", "find_image", "title_of"]


@dataclass(frozen=True, slots=True)
class Match:
    """One prior that learns one object.

    Attributes:
        target: Index into the objects.
        stride: Of the prior's level.
        center: x and y of the prior's centre in pixels of the canvas.
        size: Width and height of the prior; of a point, its nominal ones.
        place: Which of the priors of its cell.
        quality: Soft label: the most that the prior should learn for the object.
        overlap: IoU of the predicted box with the object.
    """

    target: int
    stride: int
    center: tuple[float, float]
    size: tuple[float, float]
    place: int
    quality: float
    overlap: float


@dataclass(frozen=True, slots=True)
class Method:
    """The matches of one assigner, for the lead or the auxiliary predictions."""

    title: str
    role: Role
    matches: tuple[Match, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Explained:
    """One picture, its objects, and what assigners make of them.

    Attributes:
        source: The picture's file.
        canvas_HW3: The picture as the network sees it.
        boxes: xyxy of each object, in pixels of the canvas.
        labels: Class name of each object.
        strides: Of the levels, finest first.
        methods: One of each assigner and role.
    """

    source: str
    canvas_HW3: Picture
    boxes: tuple[tuple[float, ...], ...]
    labels: tuple[str, ...]
    strides: tuple[int, ...]
    methods: tuple[Method, ...]


def find_image(annotations: Annotations, name: str | None) -> ImageRecord:
    """Return the picture of a file name or path, or the first with objects.

    Raises:
        DataError: There is none, or several have this name.
    """
    if name is None:
        found = [record for record in annotations.images if len(record.boxes_N4)][:1]
        if not found:
            raise DataError(f"{annotations.source}: no picture of this split has an object; name another split")
        return found[0]
    found = [record for record in annotations.images if name in (record.path.name, record.path.stem, str(record.path))]
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(f"{annotations.source}: {len(found)} pictures are called '{name}'; give the whole path of one")
    known = [record.path.name for record in annotations.images]
    raise DataError(
        f"{annotations.source}: no picture of this split is called '{name}'.{suggest(name, known)} "
        f"It has {len(known)}, as {', '.join(known[:3])}."
    )


def title_of(table: Mapping[str, Any]) -> str:
    """Return an assigner's name, and in brackets the names of those inside it and its settings."""
    settings = (
        f"{title_of(value)}" if isinstance(value, Mapping) else f"{key} {value}"
        for key, value in table.items()
        if key != USE
    )
    inside = ", ".join(settings)
    return f"{table[USE]} ({inside})" if inside else str(table[USE])


@torch.no_grad()
def explain(detector: Detector, record: ImageRecord, tables: Sequence[Mapping[str, Any]]) -> Explained:
    """Return what assigners make of a picture's objects, given what the detector predicts.

    The auxiliary predictions are asked where the detector has them. Crowds are left out, as in training.

    Args:
        detector: With a recipe; its mode is as before afterwards.
        record: The picture and its objects.
        tables: An assigner each, as a recipe's ``[assigner]``.

    Raises:
        DataError: The picture cannot be read.
        RecipeError: An assigner cannot be built, or cannot serve the head.
    """
    assigners = [(title_of(table), _built(table, detector)) for table in tables]
    size = 640 if detector.recipe is None else detector.recipe.data.image_size
    picture = read_picture(record.path)
    letterbox = Letterbox.fit((picture.shape[0], picture.shape[1]), size)
    boxes_N4 = letterbox.boxes_to_canvas(torch.from_numpy(record.boxes_N4[~record.is_crowd_N]))
    labels_N = torch.from_numpy(record.labels_N[~record.is_crowd_N])
    canvas = letterbox.apply(picture)
    targets = Targets.from_lists([boxes_N4], [labels_N], letterbox.canvas_size)
    lead, auxiliary = _predicted(detector, torch.from_numpy(canvas))
    methods: list[Method] = []
    for title, assigner in assigners:
        methods.append(Method(title, Role.LEAD, _matches(lead, assigner.assign(lead, targets), targets)))
        if auxiliary is not None:
            coarse = assigner.assign_auxiliary(lead, auxiliary, targets)
            methods.append(Method(title, Role.AUXILIARY, _matches(auxiliary, coarse, targets)))
    return Explained(
        source=record.path.name,
        canvas_HW3=canvas,
        boxes=tuple(tuple(box) for box in boxes_N4.tolist()),
        labels=tuple(detector.names[label] for label in labels_N.tolist()),
        strides=tuple(grid.stride for grid in lead.priors.grids),
        methods=tuple(methods),
    )


def _built(table: Mapping[str, Any], detector: Detector) -> Assigner:
    assigner: Assigner = build(Kind.ASSIGNER, table)
    objection = assigner.objection(detector.head.traits)
    if objection:
        raise RecipeError(f"--assigner {title_of(table)}: cannot serve this head: {objection}")
    return assigner


def _predicted(detector: Detector, canvas_HW3: torch.Tensor) -> tuple[Predictions, Predictions | None]:
    """Return the lead and the auxiliary predictions; norms use their statistics, as one picture has none."""
    images_BCHW = canvas_HW3.permute(2, 0, 1)[None].float() / 255
    modes = [(module, module.training) for module in detector.modules()]
    detector.train()
    for module in detector.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):  # noqa: SLF001 - torch has no public name for all batch norms
            module.eval()
    try:
        maps = detector(images_BCHW)
    finally:
        for module, mode in modes:
            module.training = mode
    return detector.head.decode(maps.lead), detector.head.decode(maps.auxiliary) if maps.auxiliary else None


def _matches(predictions: Predictions, assignment: Assignment, targets: Targets) -> tuple[Match, ...]:
    priors = predictions.priors
    prior_M, target_M = assignment.prior_M, assignment.target_M
    level_M = priors.level_P[prior_M]
    overlap_M = overlap(predictions.boxes_BP4[assignment.image_M, prior_M].float(), targets.boxes_T4[target_M])
    # Auxiliary predictions may stand on some levels alone, which keep their numbers.
    grid_of = {grid.level: grid for grid in priors.grids}
    grids = [grid_of[level] for level in level_M.tolist()]
    places = [(prior - grid.start) % grid.per_cell for prior, grid in zip(prior_M.tolist(), grids, strict=True)]
    columns = zip(
        target_M.tolist(),
        [grid.stride for grid in grids],
        priors.centers_P2[prior_M].tolist(),
        priors.sizes_P2[prior_M].tolist(),
        places,
        assignment.quality_M.tolist(),
        overlap_M.tolist(),
        strict=True,
    )
    return tuple(
        Match(target, stride, (x, y), (width, height), place, quality, shared)
        for target, stride, (x, y), (width, height), place, quality, shared in columns
    )
