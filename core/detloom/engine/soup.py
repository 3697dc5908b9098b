"""What an average is made in: a weighted sum of artifacts, and the detector that is given its mean and measured.

References: Wortsman et al., Model soups (2022), arXiv:2203.05482, equation 1; Izmailov et al. (2018),
arXiv:1803.05407, section 3.2, for the batch norm statistics.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from detloom.data.records import Annotations
from detloom.detector import Detector
from detloom.engine.evaluate import evaluate
from detloom.engine.statistics import MOST_PICTURES, renew_statistics_, running_norms, training_pictures
from detloom.recipe import Recipe

__all__ = ["AveragedDetector", "Progress", "Total"]

Progress = Callable[[str, int, int], None]


class Total:
    """The weighted sum of the entries of several artifacts, in float64."""

    def __init__(self) -> None:
        self.count = 0
        self._weight = 0.0
        self._entries: dict[str, Tensor] = {}
        self._dtypes: dict[str, torch.dtype] = {}

    def with_(self, tensors: Mapping[str, Tensor], weight: float = 1.0) -> "Total":
        """Return the sum with one artifact more."""
        result = Total()
        for name, entry in tensors.items():
            before = self._entries.get(name)
            if not entry.is_floating_point():
                # Such entries are equal in all parts, but for counts of batches, the highest of which is kept.
                result._entries[name] = entry if before is None else torch.maximum(before, entry)
            else:
                weighted = entry.double() * weight
                result._entries[name] = weighted if before is None else before + weighted
        result.count, result._weight = self.count + 1, self._weight + weight
        result._dtypes = {name: entry.dtype for name, entry in tensors.items()}
        return result

    def mean(self) -> dict[str, Tensor]:
        """Return the average, in the precision of the artifacts."""
        return {
            name: (entry / self._weight).to(self._dtypes[name]) if entry.is_floating_point() else entry
            for name, entry in self._entries.items()
        }


class AveragedDetector:
    """A detector that is given weights, statistics for them, and is measured.

    Args:
        detector: Takes the weights.
        recipe: Whose canvas, batch and settings of the evaluation are used.
        renews: Whether an average has statistics of its own where there are pictures.
        say: Told what is done.

    Attributes:
        train: The pictures that statistics are computed over, where there are any.
        val: The pictures that are measured on.
        pictures: How many the statistics at hand were computed over.
    """

    def __init__(self, detector: Detector, recipe: Recipe, say: Progress, *, renews: bool) -> None:
        self.detector = detector
        self.recipe = recipe
        self.train: Annotations | None = None
        self.val: Annotations | None = None
        self.pictures = 0
        self._renews = renews
        self._say = say

    def take(self, total: Total) -> None:
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
        shown = renew_statistics_(self.detector, batches, keep=frozen)
        # The last batch is filled up with pictures that come once more.
        self.pictures = min(shown, len(self.train.images), MOST_PICTURES)

    def measure(self, what: str) -> dict[str, float]:
        """Return the metrics on the validation split."""
        assert self.val is not None  # noqa: S101 - narrows the type
        metrics = evaluate(
            self.detector, self.val, self.recipe, progress=lambda done, total: self._say(what, done, total)
        )
        return dict(metrics.summary)
