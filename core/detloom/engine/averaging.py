"""The average of artifacts: several trainings of one network, or several epochs of one training, in one model.

References: Wang et al., YOLOv7 (2022), arXiv:2207.02696, section 2.2 (the two ensembles at the level of the model);
Wortsman et al., Model soups (2022), arXiv:2203.05482, equation 1 and algorithm 1 (uniform and greedy).
"""

import hashlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from detloom.artifacts import Artifact, load_artifact, read_artifact, save_artifact
from detloom.data.faults import refuse_faults
from detloom.data.splits import open_splits
from detloom.detector import Detector
from detloom.engine.evaluate import build_evaluator
from detloom.engine.likeness import misfit
from detloom.engine.predict import check_device
from detloom.engine.soup import AveragedDetector, Progress, Total
from detloom.engine.statistics import running_norms
from detloom.errors import ArtifactError, DataError, RecipeError
from detloom.kinds import Kind
from detloom.recipe import Recipe, load_recipe

__all__ = ["Average", "Part", "average"]


LEARNED_FROM = ("fraction", "part", "part_seed")
"""Settings of [data] that say which pictures a part learned from."""


@dataclass(frozen=True, slots=True)
class Part:
    """An artifact that was to be averaged.

    Attributes:
        path: Where it lies.
        sha256: Of the file.
        data: The fraction, the part and the seed of the division that it learned from.
        seed: Of its training.
        weight: Its share of the average, of 1; 0 where a greedy one leaves it.
        ap: On the validation split, where it was measured.
    """

    path: Path
    sha256: str
    data: Mapping[str, float]
    seed: int
    weight: float = 0.0
    ap: float | None = None

    @property
    def used(self) -> bool:
        """Return whether the average has it."""
        return self.weight > 0


@dataclass(frozen=True, slots=True, eq=False)
class Average:
    """What was made of artifacts.

    Attributes:
        detector: Has the averaged weights, in evaluation mode.
        parts: The artifacts, in the order given.
        method: ``uniform``, ``weighted`` or ``greedy``.
        statistics_pictures: Pictures that the batch norm statistics were computed over; 0 where they are the parts'.
        metrics: The evaluator's summary on the validation split, where there was a data set.
        notices: What should be known before it is used.
    """

    detector: Detector
    parts: tuple[Part, ...]
    method: str
    statistics_pictures: int
    metrics: Mapping[str, float] | None
    notices: tuple[str, ...]


def average(
    artifacts: Sequence[str | Path],
    *,
    out: str | Path | None = None,
    data: str | Path | None = None,
    greedy: bool = False,
    weights: Sequence[float] | None = None,
    recalibrate: bool | None = None,
    overrides: Mapping[str, Any] | None = None,
    device: torch.device | str | None = None,
    plugins: Sequence[str | Path] = (),
    progress: Progress | None = None,
) -> Average:
    """Average the weights of artifacts of one network, and write the result as an artifact.

        soup = detloom.average(["a/best.safetensors", "b/best.safetensors"], out="soup.safetensors", data="data/bccd")

    Means are taken in float64 and stored in the precision of the weights. They mean something where the parts were
    trained from one start: epochs of one run, or runs with the same ``init_from``. No file can show that. Parts that
    learned from parts of the data (``[data] fraction``) have an average whose statistics are of all of it.

    Args:
        artifacts: Two or more, all training forms, with the same network and the same classes.
        out: Where to write; nothing is written when not given, or when anything fails.
        data: A data set: each part and the average are measured on its validation split.
        greedy: Take the parts one by one, the best first, and keep each that does not lower the AP; needs ``data``.
        weights: A number for each artifact, its share in proportion; all alike when not given.
        recalibrate: Compute batch norm statistics over the training pictures; None does so where there is ``data``.
        overrides: Values of [data], [predict], [evaluator] and [dataset] by dotted key.
        device: Where to compute; the CPU when not given.
        plugins: Files of plugins that are run; those that the artifacts name are not.
        progress: Called with what is done, the steps of it done and those in all.

    Raises:
        ArtifactError: A part cannot be read or does not fit the first, or ``out`` cannot be written.
        DataError: The data cannot be used.
        RecipeError: ``greedy`` or ``recalibrate`` is asked for without data, or a weight or setting is wrong.
    """
    paths = [Path(each) for each in artifacts]
    target = None if out is None else Path(out)
    _check_request(paths, target, has_data=data is not None, greedy=greedy, recalibrate=bool(recalibrate))
    each_weight = _checked(weights, len(paths), greedy=greedy)
    say = progress or (lambda _what, _done, _total: None)
    first, parts = _fitting(paths, say)
    own = _recipe_of(first, parts)
    recipe = load_recipe(own, overrides, plugins=plugins)
    averaged = AveragedDetector(load_artifact(paths[0]), recipe, say, renews=recalibrate is not False)
    if device is not None:
        check_device(device)
        averaged.detector.to(device)
    found: list[dict[str, float]] = []
    if data is not None:
        averaged.train, averaged.val = open_splits(
            data, recipe.data, recipe.tables.get(Kind.DATASET), seed=recipe.train.seed
        )
        refuse_faults((averaged.train, averaged.val), skip_bad=recipe.data.skip_bad)
        # A mistake in its settings does not wait for the pictures.
        build_evaluator(recipe, averaged.val)
        found = _measured(averaged, parts, greedy=greedy)
        parts = tuple(replace(part, ap=metrics["AP"]) for part, metrics in zip(parts, found, strict=True))
    metrics: Mapping[str, float] | None = None
    if greedy:
        parts, metrics = _greedy(averaged, parts, found)
    else:
        parts = _mixed(averaged, parts, each_weight, say)
        if data is not None:
            metrics = averaged.measure("evaluating the average")
    method = "greedy" if greedy else "uniform" if weights is None else "weighted"
    notices = tuple(_notices(averaged, parts, metrics))
    made = Average(averaged.detector, parts, method, averaged.pictures, metrics, notices)
    if target is not None:
        save_artifact(target, made.detector, recipe=own, names=first.names, extra=_noted(made))
    return made


def _measured(averaged: AveragedDetector, parts: Sequence[Part], *, greedy: bool) -> list[dict[str, float]]:
    """Return the metrics of each part, with the statistics that it was trained with."""
    found = []
    for number, part in enumerate(parts, 1):
        averaged.take(Total().with_(read_artifact(part.path).tensors))
        found.append(averaged.measure(f"evaluating part {number} of {len(parts)}"))
        if greedy and math.isnan(found[-1]["AP"]):
            raise DataError("a greedy average needs a validation split with objects: AP cannot be measured on this one")
    return found


def _mixed(
    averaged: AveragedDetector, parts: Sequence[Part], weights: Sequence[float], say: Progress
) -> tuple[Part, ...]:
    """Leave the weighted mean of the parts in the detector; return them with their shares."""
    total = Total()
    for done, (part, weight) in enumerate(zip(parts, weights, strict=True), 1):
        total = total.with_(read_artifact(part.path).tensors, weight)
        say("averaging", done, len(parts))
    averaged.take(total)
    whole = math.fsum(weights)
    return tuple(replace(part, weight=weight / whole) for part, weight in zip(parts, weights, strict=True))


def _greedy(
    averaged: AveragedDetector, parts: Sequence[Part], found: Sequence[dict[str, float]]
) -> tuple[tuple[Part, ...], dict[str, float]]:
    """Leave the best soup in the detector; return which parts it has, and its metrics.

    Each soup is measured with the statistics that it would be served with.
    """
    # The sort is stable: of equals, the first given comes first.
    order = sorted(range(len(parts)), key=lambda index: -found[index]["AP"])
    soup, used, metrics = Total().with_(read_artifact(parts[order[0]].path).tensors), {order[0]}, found[order[0]]
    for position, index in enumerate(order[1:], 2):
        larger = soup.with_(read_artifact(parts[index].path).tensors)
        averaged.take(larger)
        tried = averaged.measure(f"evaluating soup {position} of {len(parts)}")
        if tried["AP"] >= metrics["AP"]:
            soup, metrics = larger, tried
            used.add(index)
    averaged.take(soup)
    share = 1 / len(used)
    return tuple(replace(part, weight=share * (index in used)) for index, part in enumerate(parts)), metrics


def _notices(averaged: AveragedDetector, parts: Sequence[Part], metrics: Mapping[str, float] | None) -> Iterator[str]:
    """Yield what should be known of the average."""
    used = sum(part.used for part in parts)
    if used > 1 and not averaged.pictures and running_norms(averaged.detector, averaged.recipe.train.freeze):
        yield (
            "its batch norm statistics are the mean of the parts', which fits none of the averaged layers, and may "
            "cost much of its AP; with --data they are computed over the training pictures"
        )
    if used > 1 and metrics is None:
        yield (
            "whether the parts were trained from one start cannot be seen in them, and others have no useful "
            "average; with --data it is measured"
        )
    if used == 1:
        yield "no other part could be added without lowering the AP: the average is the best part alone"
    best = max(parts, key=lambda part: -math.inf if part.ap is None else part.ap)
    if metrics is not None and best.ap is not None and metrics["AP"] < best.ap:
        yield (
            f"its AP is {best.ap - metrics['AP']:.3f} below that of {best.path}: parts that had no common start, or "
            "went far from it, have no useful average; --greedy leaves out those that lower it"
        )
    if averaged.val is not None and averaged.recipe.data.holdout and len({part.seed for part in parts}) > 1:
        yield (
            "what is held out follows train.seed, in which the parts differ: each AP is on pictures that other parts "
            "learned from; measure on a validation split of its own"
        )


def _check_request(paths: Sequence[Path], out: Path | None, *, has_data: bool, greedy: bool, recalibrate: bool) -> None:
    """Refuse what can be refused before anything is read."""
    if len(paths) < 2:
        raise ArtifactError(f"an average needs at least two artifacts, got {len(paths)}; `detloom fuse` takes one")
    places = [path.resolve() for path in paths]
    for path, place in zip(paths, places, strict=True):
        if places.count(place) > 1:
            raise ArtifactError(f"{path}: this artifact is named twice; each counts once")
    for wanted, name in ((greedy, "greedy"), (recalibrate, "recalibrate")):
        if wanted and not has_data:
            raise RecipeError(f"{name}: this needs pictures; give the data set with --data (in Python data=...)")
    if out is not None:
        _check_place(out, places)


def _check_place(out: Path, places: Sequence[Path]) -> None:
    """Refuse a place for the average before minutes of measuring."""
    if out.resolve() in places:
        raise ArtifactError(f"{out}: the average would take the place of one of its parts; write it elsewhere")
    if not out.parent.is_dir() or out.is_dir():
        raise ArtifactError(f"{out}: must be a file in a folder that exists")
    if out.suffix != ".safetensors":
        raise ArtifactError(f"{out}: an average is an artifact; give it a name that ends in .safetensors")
    if not os.access(out.parent, os.W_OK):
        raise ArtifactError(f"{out}: {out.parent} cannot be written; choose another folder")


def _checked(weights: Sequence[float] | None, count: int, *, greedy: bool) -> Sequence[float]:
    """Return a weight for each part."""
    if weights is None:
        return [1.0] * count
    if greedy:
        raise RecipeError("weights: a greedy average takes what it takes alike; leave out one of the two")
    if len(weights) != count:
        raise RecipeError(f"weights: there are {len(weights)} for {count} artifacts; give a number for each")
    for weight in weights:
        if not (weight > 0 and math.isfinite(weight)):
            raise RecipeError(f"weights: each must be above 0 and finite, got {weight:g}; leave out the artifact")
    return weights


def _recipe_of(first: Artifact, parts: Sequence[Part]) -> Recipe:
    """Return the recipe of the average: that of the first part, but for its part of the data where parts differ."""
    if all(part.data == parts[0].data for part in parts):
        return first.recipe
    table = {key: value for key, value in first.recipe.tables["data"].items() if key not in LEARNED_FROM}
    return replace(first.recipe, tables={**first.recipe.tables, "data": table})


def _fitting(paths: Sequence[Path], say: Progress) -> tuple[Artifact, tuple[Part, ...]]:
    """Return the first artifact, and all parts, each of which fits it."""
    first = read_artifact(paths[0])
    parts = []
    for done, path in enumerate(paths, 1):
        artifact = first if done == 1 else read_artifact(path)
        if complaint := misfit(artifact, first):
            raise ArtifactError(
                f"{path}: {complaint}\n"
                f"  What is averaged has the network, the settings and the classes of {first.path}: epochs of one run, "
                "or runs from one start."
            )
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        settings = artifact.recipe.data
        learned_from = {name: getattr(settings, name) for name in LEARNED_FROM}
        parts.append(Part(path, digest, learned_from, artifact.recipe.train.seed))
        say("reading", done, len(paths))
    return first, tuple(parts)


def _noted(made: Average) -> dict[str, Any]:
    """Return what the artifact says of its parts."""
    parts = [
        {"file": str(part.path), "sha256": part.sha256, "used": part.used, "weight": part.weight, "data": part.data}
        | ({} if part.ap is None else {"AP": part.ap})
        for part in made.parts
    ]
    noted: dict[str, Any] = {
        "average": {"method": made.method, "parts": parts, "statistics_pictures": made.statistics_pictures}
    }
    if made.metrics is not None:
        noted["metrics"] = {name: value for name, value in made.metrics.items() if math.isfinite(value)}
    return noted
