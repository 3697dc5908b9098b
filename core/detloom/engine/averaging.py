"""The average of artifacts: several trainings of one network, or several epochs of one training, in one model.

References: Wortsman et al., Model soups (2022), arXiv:2203.05482, equation 1 and algorithm 1 (uniform and greedy);
Izmailov et al. (2018), arXiv:1803.05407, section 3.2, for the batch norm statistics.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detloom.artifacts import Artifact, load_artifact, read_artifact, save_artifact
from detloom.data.faults import refuse_faults
from detloom.data.records import Annotations
from detloom.data.splits import open_splits
from detloom.detector import Detector
from detloom.engine.evaluate import build_evaluator, evaluate
from detloom.engine.likeness import misfit
from detloom.engine.predict import check_device
from detloom.engine.statistics import renew_statistics_, running_norms, training_pictures
from detloom.errors import ArtifactError, DataError, RecipeError
from detloom.kinds import Kind
from detloom.recipe import Recipe, load_recipe

__all__ = ["Average", "Part", "average"]

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Part:
    """An artifact that was to be averaged.

    Attributes:
        path: Where it lies.
        sha256: Of the file.
        used: Whether the average has it; of a greedy one, not all.
        ap: On the validation split, where it was measured.
    """

    path: Path
    sha256: str
    used: bool = True
    ap: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Average:
    """What was made of artifacts.

    Attributes:
        detector: Has the averaged weights, in evaluation mode.
        parts: The artifacts, in the order given.
        method: ``uniform`` or ``greedy``.
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
    recalibrate: bool | None = None,
    overrides: Mapping[str, Any] | None = None,
    device: torch.device | str | None = None,
    plugins: Sequence[str | Path] = (),
    progress: Progress | None = None,
) -> Average:
    """Average the weights of artifacts of one network, and write the result as an artifact.

        soup = detloom.average(["a/best.safetensors", "b/best.safetensors"], out="soup.safetensors", data="data/bccd")

    Means are taken in float64 and stored in the precision of the weights. They mean something where the parts were
    trained from one start: epochs of one run, or runs with the same ``init_from``. No file can show that.

    Args:
        artifacts: Two or more, all training forms, with the same network and the same classes.
        out: Where to write; nothing is written when not given, or when anything fails.
        data: A data set: the average is measured on its validation split.
        greedy: Take the parts one by one, the best first, and keep each that does not lower the AP; needs ``data``.
        recalibrate: Compute batch norm statistics over the training pictures; None does so where there is ``data``.
        overrides: Values of [data], [predict], [evaluator] and [dataset] by dotted key.
        device: Where to compute; the CPU when not given.
        plugins: Files of plugins that are run; those that the artifacts name are not.
        progress: Called with what is done, the steps of it done and those in all.

    Raises:
        ArtifactError: A part cannot be read or does not fit the first, or ``out`` cannot be written.
        DataError: The data cannot be used.
        RecipeError: ``greedy`` or ``recalibrate`` is asked for without data, or a setting is wrong.
    """
    paths = [Path(each) for each in artifacts]
    target = None if out is None else Path(out)
    _check_request(paths, target, has_data=data is not None, greedy=greedy, recalibrate=bool(recalibrate))
    say = progress or (lambda _what, _done, _total: None)
    first, parts = _fitting(paths, say)
    recipe = load_recipe(first.recipe, overrides, plugins=plugins)
    kitchen = _Kitchen(load_artifact(paths[0]), recipe, recalibrate is not False, say)
    if device is not None:
        check_device(device)
        kitchen.detector.to(device)
    if data is not None:
        kitchen.train, kitchen.val = open_splits(
            data, recipe.data, recipe.tables.get(Kind.DATASET), seed=recipe.train.seed
        )
        refuse_faults((kitchen.train, kitchen.val), skip_bad=recipe.data.skip_bad)
        # A mistake in its settings does not wait for the pictures.
        build_evaluator(recipe, kitchen.val)
    metrics: Mapping[str, float] | None = None
    if greedy:
        parts, metrics = _greedy(kitchen, parts)
    else:
        total = _Sum()
        for done, part in enumerate(parts, 1):
            total = total.with_(read_artifact(part.path).tensors)
            say("averaging", done, len(parts))
        kitchen.serve(total)
        if data is not None:
            metrics = kitchen.measure("evaluating the average")
    method = "greedy" if greedy else "uniform"
    made = Average(kitchen.detector, parts, method, kitchen.pictures, metrics, kitchen.notices(parts))
    if target is not None:
        save_artifact(target, made.detector, recipe=first.recipe, names=first.names, extra=_noted(made))
    return made


class _Sum:
    """The sum of the weights of several artifacts, in float64."""

    def __init__(self, entries: Mapping[str, Tensor] | None = None, count: int = 0) -> None:
        self.entries = dict(entries or {})
        self.count = count
        self.dtypes: dict[str, torch.dtype] = {}

    def with_(self, tensors: Mapping[str, Tensor]) -> "_Sum":
        """Return the sum with one artifact more."""
        summed = {}
        for name, entry in tensors.items():
            before = self.entries.get(name)
            if not entry.is_floating_point():
                # Such entries are equal in all parts, but for counts of batches, the highest of which is kept.
                summed[name] = entry if before is None else torch.maximum(before, entry)
            else:
                summed[name] = entry.double() if before is None else before + entry.double()
        result = _Sum(summed, self.count + 1)
        result.dtypes = {name: entry.dtype for name, entry in tensors.items()}
        return result

    def mean(self) -> dict[str, Tensor]:
        """Return the average, in the precision of the artifacts."""
        return {
            name: (entry / self.count).to(self.dtypes[name]) if entry.is_floating_point() else entry
            for name, entry in self.entries.items()
        }


class _Kitchen:
    """A detector that is given weights, statistics for them, and is measured."""

    def __init__(self, detector: Detector, recipe: Recipe, renews: bool, say: Progress) -> None:
        self.detector = detector
        self.recipe = recipe
        self.train: Annotations | None = None
        self.val: Annotations | None = None
        self.pictures = 0
        self._renews = renews
        self._say = say

    def serve(self, total: _Sum) -> None:
        """Take the mean of a sum; of several artifacts, with statistics of its own where there are pictures."""
        self.detector.load_state_dict(total.mean())
        self.pictures = 0
        frozen = self.recipe.train.freeze
        if self.train is None or not self._renews or total.count == 1 or not running_norms(self.detector, frozen):
            return
        batches = training_pictures(
            self.detector,
            self.train,
            self.recipe,
            progress=lambda done, all_: self._say("batch norm statistics", done, all_),
        )
        self.pictures = renew_statistics_(self.detector, batches, keep=frozen)

    def measure(self, what: str) -> dict[str, float]:
        """Return the metrics on the validation split."""
        assert self.val is not None  # noqa: S101 - narrows the type
        metrics = evaluate(
            self.detector, self.val, self.recipe, progress=lambda done, total: self._say(what, done, total)
        )
        return dict(metrics.summary)

    def notices(self, parts: Sequence[Part]) -> tuple[str, ...]:
        """Return what should be known of the average."""
        said = []
        used = sum(part.used for part in parts)
        if used > 1 and not self.pictures and running_norms(self.detector, self.recipe.train.freeze):
            said.append(
                "its batch norm statistics are the mean of the parts', which fits none of the averaged layers, and may "
                "cost much of its AP; with --data they are computed over the training pictures"
            )
        if used > 1 and self.val is None:
            said.append(
                "whether the parts were trained from one start cannot be seen in them, and others have no useful "
                "average; with --data it is measured"
            )
        if len(parts) > 1 and used == 1:
            said.append("no other part could be added without lowering the AP: the average is the best part alone")
        return tuple(said)


def _greedy(kitchen: _Kitchen, parts: Sequence[Part]) -> tuple[tuple[Part, ...], dict[str, float]]:
    """Leave the best soup in the kitchen; return which parts it has, and its metrics.

    Each soup is measured with the statistics that it would be served with.
    """
    found = []
    for index, part in enumerate(parts):
        kitchen.serve(_Sum().with_(read_artifact(part.path).tensors))
        found.append(kitchen.measure(f"evaluating part {index + 1} of {len(parts)}"))
        if math.isnan(found[-1]["AP"]):
            raise DataError("a greedy average needs a validation split with objects: AP cannot be measured on this one")
    # The sort is stable: of equals, the first given comes first.
    order = sorted(range(len(parts)), key=lambda index: -found[index]["AP"])
    soup, used, metrics = _Sum().with_(read_artifact(parts[order[0]].path).tensors), {order[0]}, found[order[0]]
    for position, index in enumerate(order[1:], 2):
        larger = soup.with_(read_artifact(parts[index].path).tensors)
        kitchen.serve(larger)
        tried = kitchen.measure(f"evaluating soup {position} of {len(parts)}")
        if tried["AP"] >= metrics["AP"]:
            soup, metrics = larger, tried
            used.add(index)
    kitchen.serve(soup)
    return tuple(replace(part, used=index in used, ap=found[index]["AP"]) for index, part in enumerate(parts)), metrics


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
    if out is None:
        return
    if out.resolve() in places:
        raise ArtifactError(f"{out}: the average would take the place of one of its parts; write it elsewhere")
    if not out.parent.is_dir() or out.is_dir():
        raise ArtifactError(f"{out}: must be a file in a folder that exists")


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
            parts.append(Part(path, hashlib.file_digest(file, "sha256").hexdigest()))
        say("reading", done, len(paths))
    return first, tuple(parts)


def _noted(made: Average) -> dict[str, Any]:
    """Return what the artifact says of its parts."""
    parts = [
        {"file": str(part.path), "sha256": part.sha256, "used": part.used}
        | ({} if part.ap is None else {"AP": part.ap})
        for part in made.parts
    ]
    noted: dict[str, Any] = {
        "average": {"method": made.method, "parts": parts, "statistics_pictures": made.statistics_pictures}
    }
    if made.metrics is not None:
        noted["metrics"] = {name: value for name, value in made.metrics.items() if math.isfinite(value)}
    return noted
