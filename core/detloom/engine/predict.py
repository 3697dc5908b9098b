"""Detections in pictures: batched, in order, streamed.

Shape letters: see ``structures``.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from detloom.data.letterbox import Letterbox
from detloom.data.reading import Picture
from detloom.data.settings import DataSettings, size_complaint
from detloom.detector import Detector
from detloom.durable import write_text
from detloom.engine.failures import explained_shortage
from detloom.engine.settings import Precision, PredictSettings
from detloom.engine.sources import Source, open_sources, windows
from detloom.errors import DataError, RecipeError, suggest
from detloom.ops.nms import Kept, suppress
from detloom.pictures import draw, make_directory, write_picture
from detloom.settings import validated
from detloom.structures import Detections, HeadMaps

__all__ = [
    "Forward",
    "check_device",
    "detect",
    "detections_json",
    "detections_of",
    "ready",
    "stream",
    "write_predictions",
]

Forward = Callable[[Tensor], Sequence[Tensor]]
"""RGB in [0, 1], ``[B, 3, H, W]``, to the raw lead maps: what may stand in for a detector's own network."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LABEL_SIDE = 640


def stream(
    detector: Detector,
    sources: Source | Sequence[Source],
    *,
    score: float | None = None,
    overlap: float | None = None,
    max_detections: int | None = None,
    classes: Sequence[str | int] | None = None,
    agnostic: bool | None = None,
    batch: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    precision: Precision = "float32",
    device: torch.device | str | None = None,
    on_bad: Callable[[DataError], None] | None = None,
) -> Iterator[tuple[Picture, Detections]]:
    """Yield each picture with what is found in it; holds a batch in memory, not a whole video.

    The arguments are those of ``Detector.predict``.
    """
    settings, canvas_size = _settings(
        detector,
        {
            "score": score,
            "overlap": overlap,
            "max_detections": max_detections,
            "agnostic": agnostic,
            "batch": batch,
        },
        image_size,
    )
    if precision not in DTYPES:
        raise RecipeError(f"predict: 'precision' is {precision!r}; it must be one of {', '.join(DTYPES)}")
    stride = detector.max_stride
    indices = _class_indices(classes, detector.names)
    bad: list[DataError] = []
    frames = open_sources(sources)
    with ready(detector, fuse=settings.fuse, device=device, keep=True) as model:
        for window in windows(frames, settings.batch):
            pictures, names = [], []
            for frame in window:
                if isinstance(frame.picture, DataError):
                    (on_bad or bad.append)(frame.picture)
                else:
                    pictures.append(frame.picture)
                    names.append(frame.source)
            letterboxes = [
                Letterbox.fit(each.shape[:2], canvas_size, stride=stride if settings.rectangular else None)
                for each in pictures
            ]
            found: dict[int, Detections] = {}
            for positions in _by_canvas(letterboxes):
                canvas_BHWC = np.stack([letterboxes[i].apply(pictures[i]) for i in positions])
                kept = detect(
                    model,
                    torch.from_numpy(canvas_BHWC).permute(0, 3, 1, 2),
                    score=settings.score,
                    overlap=settings.overlap,
                    max_detections=settings.max_detections,
                    agnostic=settings.agnostic,
                    candidates=settings.candidates,
                    classes=indices,
                    precision=precision,
                )
                group = detections_of(
                    kept, [letterboxes[i] for i in positions], detector.names, [names[i] for i in positions]
                )
                found.update(zip(positions, group, strict=True))
            for position, picture in enumerate(pictures):
                yield picture, found[position]
    if bad:
        lines = "\n".join(f"  {error.what}" for error in bad)
        count = "1 source" if len(bad) == 1 else f"{len(bad)} sources"
        raise DataError(
            f"predict: {count} cannot be read; the others were done\n{lines}\n"
            "  Restore or convert them, or leave them out: --skip-bad, or on_bad in Python."
        )


def detect(
    model: Detector,
    images_BCHW: Tensor,
    *,
    score: float,
    overlap: float,
    max_detections: int = 300,
    multi_label: bool = False,
    agnostic: bool = False,
    candidates: int = 30000,
    classes: Sequence[int] | None = None,
    precision: Precision = "float32",
    forward: Forward | None = None,
) -> Kept:
    """Return what is found in a batch, in pixels of the network's input.

    What a head finds that is made to find each object once is not suppressed.

    Args:
        model: In evaluation mode.
        images_BCHW: RGB, uint8 from 0 to 255.
        score: See ``suppress``, as for the next six.
        overlap: IoU.
        max_detections: Of an image.
        multi_label: Several labels a box.
        agnostic: Suppress across classes.
        candidates: Of an image.
        classes: Indices.
        precision: Of the forward pass; decoding and suppression are in float32.
        forward: Makes the raw maps in the place of the model, whose head decodes them; None for the model itself.

    Raises:
        TrainingError: Memory is short.
    """
    device = next(model.parameters()).device
    batch, _, height, width = images_BCHW.shape
    advice = f"Lower [predict] batch, for example to {max(batch // 2, 1)}, or [data] image_size."
    with (
        explained_shortage(f"{batch} pictures of {height} x {width} at once", device, lambda: advice),
        torch.inference_mode(),
    ):
        inputs_BCHW = images_BCHW.to(device, non_blocking=True).to(memory_format=torch.channels_last).float() / 255
        with torch.autocast(device.type, DTYPES[precision], enabled=precision != "float32"):
            lead = _lead_maps(model, inputs_BCHW) if forward is None else forward(inputs_BCHW)
        return suppress(
            model.head.decode(lead),
            score=score,
            overlap=None if model.head.traits.one_to_one else overlap,
            max_detections=max_detections,
            multi_label=multi_label,
            agnostic=agnostic,
            candidates=candidates,
            classes=classes,
        )


def _lead_maps(model: Detector, inputs_BCHW: Tensor) -> tuple[Tensor, ...]:
    maps = model(inputs_BCHW)
    assert isinstance(maps, HeadMaps)  # noqa: S101 - narrows the type
    return maps.lead


def detections_of(
    kept: Kept, letterboxes: Sequence[Letterbox], names: tuple[str, ...], sources: Sequence[str | None]
) -> list[Detections]:
    """Return boxes of a batch in pixels of their pictures; what lies outside of them is left out."""
    found = []
    for (boxes_N4, scores_N, labels_N), letterbox, source in zip(kept.per_image(), letterboxes, sources, strict=True):
        clipped_N4 = letterbox.boxes_to_picture(boxes_N4)
        is_inside_N = (clipped_N4[:, 2:] > clipped_N4[:, :2]).all(1)
        found.append(
            Detections(
                boxes_N4=clipped_N4[is_inside_N],
                scores_N=scores_N[is_inside_N],
                labels_N=labels_N[is_inside_N],
                names=names,
                image_size=letterbox.picture_size,
                source=source,
            )
        )
    return found


@contextmanager
def ready(
    detector: Detector, *, fuse: bool, device: torch.device | str | None = None, keep: bool = False
) -> Iterator[Detector]:
    """Yield a detector in evaluation mode, and leave the given one as it was.

    Args:
        detector: Folded on a copy, or used as it is.
        fuse: Whether to fold it.
        device: Where to compute; None stays where the detector is.
        keep: Keep the folded copy for the next call, at the price of its memory.

    Raises:
        RecipeError: There is no such device here.
    """
    if device is not None:
        check_device(device)
    was_training = detector.training
    here = next(detector.parameters()).device
    if fuse and keep:
        model = detector.deployed(device)
    else:
        model = detector.fuse() if fuse else detector
        if device is not None and torch.device(device) != here:
            model = (deepcopy(model) if model is detector else model).to(device)
    model.eval()
    try:
        yield model
    finally:
        detector.train(was_training)


def check_device(device: torch.device | str) -> None:
    """Refuse a device that cannot be used here.

    Raises:
        RecipeError: There is no such device; says which there are.
    """
    found = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    found += ["mps"] if torch.backends.mps.is_available() else []
    at_hand = f"At hand are: {', '.join(['cpu', *found])}."
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        # torch's own words list every kind of device that there is anywhere.
        raise RecipeError(f"device {str(device)!r} cannot be used here: that names no device\n  {at_hand}") from error
    try:
        torch.empty(0, device=wanted)
    # torch says AssertionError where it was built without a kind of device.
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise RecipeError(f"device {str(device)!r} cannot be used here: {reason}\n  {at_hand}") from error


def write_predictions(
    directory: str | Path,
    found: Iterable[tuple[Picture, Detections]],
    *,
    pictures: bool = True,
    suffix: Literal[".jpg", ".png"] = ".jpg",
) -> list[Path]:
    """Write pictures with boxes and ``predictions.json``; return the paths, the JSON file first.

    Each entry of the JSON list has ``source``, ``height``, ``width``, ``picture`` (the file written, or
    null) and ``detections``: ``class``, ``label``, ``score`` and ``box`` (x1, y1, x2, y2 in pixels).

    Args:
        directory: Made where it is absent.
        found: What ``stream`` yields, or pictures with their detections.
        pictures: Write pictures, too.
        suffix: Format of the pictures.

    Raises:
        ArtifactError: A file cannot be written.
    """
    directory = Path(directory)
    make_directory(directory)
    written: list[Path] = []
    rows = []
    taken: set[str] = set()
    result = directory / "predictions.json"
    try:
        for index, (picture_HW3, detections) in enumerate(found):
            path = None
            if pictures:
                path = directory / f"{_file_name(detections.source, index, taken)}{suffix}"
                write_picture(path, draw(picture_HW3, detections, enlarge_to=LABEL_SIDE))
                written.append(path)
            rows.append(detections_json(detections, path))
    finally:
        # What was found before a source that cannot be read is kept.
        write_text(result, json.dumps(rows, indent=1) + "\n")
    return [result, *written]


def detections_json(detections: Detections, path: Path | None) -> dict[str, object]:
    """Return detections as plain data; ``path`` is the picture that was written, if any."""
    columns = (detections.boxes_N4.tolist(), detections.scores_N.tolist(), detections.labels_N.tolist())
    return {
        "source": detections.source,
        "height": detections.image_size[0],
        "width": detections.image_size[1],
        "picture": None if path is None else path.name,
        "detections": [
            {
                "class": detections.names[label],
                "label": label,
                "score": round(score, 5),
                "box": [round(edge, 3) for edge in box],
            }
            for box, score, label in zip(*columns, strict=True)
        ],
    }


def _file_name(source: str | None, index: int, taken: set[str]) -> str:
    """Return a name without suffix that no other picture has: ``cat``, ``clip-000012``, ``picture-0003``."""
    name = f"picture-{index:04d}"
    if source is not None:
        path, _, number = source.rpartition("#") if re.search(r"#\d+$", source) else (source, "", "")
        name = f"{Path(path).stem}-{int(number):06d}" if number else Path(path).stem
    if name in taken:
        name = f"{name}-{index:04d}"
    taken.add(name)
    return name


def _settings(
    detector: Detector, given: Mapping[str, object], image_size: int | tuple[int, int] | None
) -> tuple[PredictSettings, int | tuple[int, int]]:
    """Return the settings and the canvas: what is given, else what the recipe says, held to the same limits."""
    own = PredictSettings() if detector.recipe is None else detector.recipe.predict
    data = DataSettings() if detector.recipe is None else detector.recipe.data
    wanted = {name: value for name, value in given.items() if value is not None}
    canvas = {} if image_size is None else {"image_size": image_size}
    settings, complaints = validated(PredictSettings, {**own.model_dump(), **wanted}, "predict")
    sized, others = validated(DataSettings, {**data.model_dump(), **canvas}, "predict")
    if not isinstance(settings, PredictSettings) or not isinstance(sized, DataSettings):
        raise RecipeError("\n".join((*complaints, *others)))
    if complaint := size_complaint(sized.image_size, detector.max_stride):
        raise RecipeError(f"predict: {complaint}")
    return settings, sized.image_size


def _by_canvas(letterboxes: Sequence[Letterbox]) -> list[list[int]]:
    """Return the positions of pictures that fit in one tensor."""
    groups: dict[tuple[int, int], list[int]] = {}
    for position, letterbox in enumerate(letterboxes):
        groups.setdefault(letterbox.canvas_size, []).append(position)
    return list(groups.values())


def _class_indices(classes: Sequence[str | int] | None, names: tuple[str, ...]) -> list[int] | None:
    if classes is None:
        return None
    if isinstance(classes, str) or not isinstance(classes, Iterable):
        raise RecipeError(f"predict: 'classes' is {classes!r}; give a list of names or indices, as in [{classes!r}]")
    indices = []
    for each in classes:
        if isinstance(each, int) and 0 <= each < len(names):
            indices.append(each)
        elif isinstance(each, str) and each in names:
            indices.append(names.index(each))
        else:
            hint = suggest(each, names) if isinstance(each, str) else ""
            raise RecipeError(
                f"predict: classes has {each!r}, which the detector does not know.{hint}\n"
                f"  Its classes are: {', '.join(names)}; or their indices from 0 to {len(names) - 1}."
            )
    return indices
