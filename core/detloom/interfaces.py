"""The contracts that components fill, one of each kind.

What the assembler supplies comes first and positional; settings are keyword-only, typed, with
defaults. The constructors cannot be declared abstractly because each component has its own
settings; they are stated in the docstrings and held by the conformance kit.

Shape letters: see ``structures``; N boxes, A anchors.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from detloom.decode_spec import DecodeSpec
from detloom.search.space import Point, SearchSpace, Trial  # settings are read off __init__, space and all
from detloom.structures import (
    Assignment,
    Detections,
    Extent,
    FeatureSpec,
    HeadMaps,
    HeadTraits,
    Predictions,
    Targets,
)

if TYPE_CHECKING:
    from detloom.data.records import Annotations
    from detloom.detector import Detector
    from detloom.export.network import Exported, Network, Preflight, Runner
    from detloom.foreign import ForeignCheckpoint
    from detloom.recipe import Recipe
    from detloom.search.ground import Ground

__all__ = [
    "AnchorSearch",
    "Assigner",
    "Backbone",
    "Criterion",
    "Dataset",
    "Ema",
    "Evaluator",
    "Exporter",
    "Fold",
    "Head",
    "Importer",
    "Metrics",
    "Neck",
    "Observer",
    "ReparamPass",
    "Scaling",
    "SearchStrategy",
]


class Backbone(nn.Module, ABC):
    """Pictures to feature levels: ``__init__(*, settings)``.

    Attributes:
        out_specs: One for each level returned, finest first.
        extents: What the class says of its settings, for scaling: the settings that are depths or widths, by name; for
            members of a list ``*`` stands for each and a number for a place, as ``"stem.*.2"``. Empty where none of
            them are; None, for nothing said, is refused by scalings.
    """

    out_specs: tuple[FeatureSpec, ...]
    extents: ClassVar[Mapping[str, Extent] | None] = None

    @abstractmethod
    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        """Return the levels of RGB pictures with values in [0, 1]."""


class Neck(nn.Module, ABC):
    """Levels to levels: ``__init__(inputs: Sequence[FeatureSpec], *, settings)``.

    Attributes:
        out_specs: One for each level returned: lead levels finest first, then auxiliary ones.
        extents: As for a backbone.
    """

    out_specs: tuple[FeatureSpec, ...]
    extents: ClassVar[Mapping[str, Extent] | None] = None

    @abstractmethod
    def forward(self, levels: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Return one tensor for each of ``out_specs``.

        Auxiliary levels may be left out in evaluation mode.
        """


class Head(nn.Module, ABC):
    """Levels to predictions: ``__init__(inputs: Sequence[FeatureSpec], num_classes, *, settings)``.

    A head whose traits have ``anchors`` takes them as a setting of that name: a list for each lead level, finest
    first, of ``[width, height]`` in pixels of the network's input. Others are searched, and set, by that name.

    Attributes:
        num_classes: As given.
        traits: What assigners and criteria may ask of this head.
        extents: As for a backbone; sizes of anchors are lengths.
    """

    num_classes: int
    traits: HeadTraits
    extents: ClassVar[Mapping[str, Extent] | None] = None

    @abstractmethod
    def forward(self, levels: Sequence[Tensor]) -> HeadMaps:
        """Return the raw maps; auxiliary maps in training mode alone."""

    @abstractmethod
    def decode(self, maps: Sequence[Tensor]) -> Predictions:
        """Return the predictions of lead maps, or of auxiliary maps, in float32.

        Auxiliary maps stand on all lead levels or on some; where there are as many maps as lead levels they stand
        on all of these. Priors on some levels keep the numbers of their levels (see ``Priors.on_grids``).
        """

    @abstractmethod
    def decode_spec(self) -> DecodeSpec:
        """Return as plain JSON data all that a decoder needs on a host without torch."""


class Assigner(ABC):
    """Which prior learns which target: ``__init__(*, settings)``.

    Nothing here loops over images or targets. As a GPU is waited for whenever a size depends on
    its values, it is asked for few in a batch: for the number of matches once, when they are
    compacted into an ``Assignment``, and for no value of one target or image.

    Attributes:
        one_to_one: Whether a target has one lead prior at most, as a head without suppression needs.
    """

    one_to_one: bool = False

    @abstractmethod
    def assign(self, predictions: Predictions, targets: Targets) -> Assignment:
        """Return the matches of the lead predictions; no gradient flows through them."""

    def assign_auxiliary(self, lead: Predictions, auxiliary: Predictions, targets: Targets) -> Assignment:  # noqa: ARG002 - the contract of those that follow the lead
        """Return the matches of the auxiliary predictions; by default independent of the lead."""
        return self.assign(auxiliary, targets)

    def relaxed(self) -> "Assigner | None":
        """Return the same method with weaker conditions, which finds more positives; None where it has none.

        Coarse-to-fine assignment gives these to the auxiliary head.
        """
        return None

    def objection(self, head: HeadTraits) -> str | None:  # noqa: ARG002 - the contract of those that have one
        """Return why this method cannot serve a head, or None where it can."""
        return None


class Criterion(ABC):
    """What the matches cost: ``__init__(*, settings)``."""

    @abstractmethod
    def losses(self, predictions: Predictions, assignment: Assignment, targets: Targets) -> dict[str, Tensor]:
        """Return named scalars, weighted, whose sum is minimised.

        They are means: they do not grow with the batch. Counts that they are divided by are
        averaged over processes (``ops.reduce.mean_over_processes``), so that several processes
        together have the loss of one with the whole batch.
        """

    def objection(self, head: HeadTraits) -> str | None:  # noqa: ARG002 - the contract of those that have one
        """Return why this criterion cannot serve a head, or None where it can."""
        return None


@dataclass(frozen=True, slots=True)
class Fold:
    """One place where a pass applies, or may not.

    Attributes:
        path: Dotted name of the module that ``fold`` is given.
        applies: Whether it will be folded.
        reason: What is folded, or why it may not be.
        parts: Names of the parts concerned, relative to ``path``.
        warning: What is wrong with the model there, and what mends it; `detloom check` prints it.
    """

    path: str
    applies: bool
    reason: str
    parts: tuple[str, ...] = ()
    warning: str = ""


class ReparamPass(ABC):
    """A training structure to an equal, cheaper one: ``__init__(*, settings)``."""

    @abstractmethod
    def plan(self, model: nn.Module) -> list[Fold]:
        """Return every place where the pass applies or is refused; changes nothing.

        A folded model has a plan in which nothing applies.
        """

    @abstractmethod
    def fold(self, module: nn.Module, fold: Fold) -> nn.Module:
        """Return what replaces the module at ``fold.path``; the module given is a copy, in eval mode."""


class Ema(ABC):
    """An average of a model's weights over its training: ``__init__(model, *, settings)``.

    The average is a copy of the model; entries are matched by name. Integer entries are copied.

    Attributes:
        averaged: The averaged model, in evaluation mode, without gradients.
    """

    averaged: nn.Module

    @abstractmethod
    def decay_at(self, step: int) -> float:
        """Return how much of the average is kept at an optimiser step, counted from 1."""

    @abstractmethod
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights after an optimiser step, counted from 1."""

    def needs_statistics(self, step: int) -> bool:  # noqa: ARG002 - the contract of those that need them
        """Return whether the average of a step needs batch norm statistics of its own before it is used.

        Where it does, they are computed over training pictures at the end of an epoch, in ``averaged``.
        """
        return False

    def state_dict(self) -> dict[str, Any]:
        """Return what must be known beside ``averaged`` to go on: tables, lists, numbers, text and tensors."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027 - an average that has no more state has nothing to do
        """Take up what ``state_dict`` returned; tensors come on the CPU, tuples as lists."""


class AnchorSearch(ABC):
    """Sizes of anchors from the sizes of boxes: ``__init__(*, settings)``.

    Widths and heights are in pixels of the network's input.

    Attributes:
        threshold: An anchor can learn a box if neither of its sides is this many times larger or smaller.
        min_recall: Training looks for other anchors where less than this share of boxes has one that can learn it.
    """

    threshold: float
    min_recall: float

    @abstractmethod
    def search(self, sizes_N2: Tensor, current_A2: Tensor, generator: torch.Generator) -> Tensor:
        """Return as many anchors as there are at present, ``[A, 2]``, by growing area.

        The same generator, in the same state, gives the same anchors. The core deals them to the levels, the
        smallest to the finest, and takes them only where they serve better.

        Args:
            sizes_N2: Of boxes, at least as many as anchors; all of them above 0.
            current_A2: The head's present anchors, finest level first.
            generator: The only source of randomness.
        """


class Dataset(ABC):
    """Annotations of one format: ``__init__(path: Path, *, settings)``.

    It reads no pixels; that is the core's work, the same for all formats.
    """

    @classmethod
    @abstractmethod
    def recognises(cls, path: Path) -> bool:
        """Return whether a folder or file has this format; looks at names, not at all content."""

    @abstractmethod
    def read(self, split: str) -> "Annotations":
        """Return the images, boxes and faults of a split.

        Raises:
            DataError: There is no such split, or its files cannot be read at all. Faults of single
                images or boxes are listed in the result, not raised.
        """


@dataclass(frozen=True, slots=True)
class Metrics:
    """What an evaluator found.

    Attributes:
        summary: COCO's twelve numbers by name (``AP``, ``AP50``, ``AP75``, ``APs``, ``APm``, ``APl``,
            ``AR1``, ``AR10``, ``AR100``, ``ARs``, ``ARm``, ``ARl``); NaN where nothing could be measured.
        per_class: AP and AP50 of each class name.
    """

    summary: Mapping[str, float]
    per_class: Mapping[str, Mapping[str, float]]


class Evaluator(ABC):
    """Detections against annotations: ``__init__(annotations: Annotations, *, settings)``."""

    @abstractmethod
    def evaluate(self, detections: Mapping[int, Detections]) -> Metrics:
        """Return the metrics of detections by index of the image among the annotations."""


class Observer(ABC):  # noqa: B024 - its methods are hooks, each of them optional
    """Follows a run: ``__init__(*, settings)``; its methods are hooks of ``hookspecs.RunHooks``."""


class Importer(ABC):
    """What the names in a foreign checkpoint mean: ``__init__(*, settings)``.

    The core reads the file and holds that every tensor on both sides is used exactly once, in its
    shape. What the file holds beside tensors is a stranger's: believe none of it, not even a type.
    """

    @abstractmethod
    def recognises(self, checkpoint: "ForeignCheckpoint") -> bool:
        """Return whether the tensors' names are of the form that this importer knows."""

    @abstractmethod
    def class_names(self, checkpoint: "ForeignCheckpoint") -> tuple[str, ...] | None:
        """Return the class names by index, or nothing where the file does not say how many there are."""

    @abstractmethod
    def overrides(self, checkpoint: "ForeignCheckpoint", recipe: "Recipe") -> dict[str, Any]:
        """Return what the file says otherwise than a recipe, by dotted key.

        Raises:
            ArtifactError: The recipe's network is none that this importer knows.
        """

    @abstractmethod
    def mapping(self, checkpoint: "ForeignCheckpoint", detector: "Detector") -> dict[str, str | None]:
        """Return our name for each of the file's, or None where it became a setting.

        Args:
            checkpoint: What the file holds.
            detector: Assembled from the recipe, on the meta device.

        Raises:
            ArtifactError: The file contradicts the detector in what is no tensor.
        """


class Exporter(ABC):
    """A deployed network to a file that a device runs: ``__init__(*, settings)``.

    The core folds the detector, proves it, cuts off what a host decodes, collects the pictures to calibrate on,
    measures the result, and puts the files in their place only when all of it went well.

    Attributes:
        targets: Names of devices, each with the settings that stand for it; may be empty.
        passes: Names of the reparam passes that the folded detector goes through before it comes here.
        calibrates: Whether pictures are needed to find the ranges of numbers.
        packages: Names of distributions whose versions belong in the report.
    """

    targets: Mapping[str, Mapping[str, Any]] = MappingProxyType({})
    passes: tuple[str, ...] = ()
    calibrates: bool = False
    packages: tuple[str, ...] = ()

    @classmethod
    @abstractmethod
    def missing(cls) -> str | None:
        """Return one line that says which packages are missing and what installs them, or None."""

    @abstractmethod
    def check(self, network: "Network") -> "Preflight":
        """Return where each module of the network would run, why, what it costs and what mends it; writes nothing.

        Raises:
            ExportError: It cannot be told for this network at all.
        """

    @abstractmethod
    def export(self, network: "Network", calibration_NCHW: Tensor | None, folder: Path) -> "Exported":
        """Write the files into an empty folder.

        Args:
            network: What to export.
            calibration_NCHW: RGB in [0, 1], of the network's input size; None for one that needs none.
            folder: On the file system of the final place; the core moves what lies here when all went well.

        Raises:
            ExportError: An operator is not supported, named with its module; or the compiler failed.
        """

    @abstractmethod
    def runners(self, exported: "Exported", folder: Path) -> "Mapping[str, Runner]":
        """Return what runs the exported forms on this machine, by the stage's name, in the order of the chain.

        A stage is ``float`` or ``int8`` for files that a runtime runs here, ``simulator`` for arithmetic that is the
        chip's to the bit; others may be named. Empty where nothing here can run them.
        """


class Scaling(ABC):
    """A network to a larger or smaller one of its design: ``__init__(*, settings)``.

    The core asks it before anything is built: what comes out is an ordinary recipe, which an artifact carries.

    Attributes:
        changes: What it may change. All components of the network must say which of their settings are that.
    """

    changes: frozenset[Extent]

    @abstractmethod
    def scale(self, tables: Mapping[str, Any], extents: Mapping[str, Extent]) -> dict[str, Any]:
        """Return the settings that change, by section and name, as ``{"backbone.depth": 6}``; changes nothing itself.

        ``detloom.ops.scaling`` has the arithmetic.

        Args:
            tables: The recipe's sections; measured settings that it leaves out have their defaults.
            extents: What is measured, by path: section, setting and, for members of a list, ``*`` for each or a
                number for a place. What stands at a path is a number or a list, whose numbers are all meant. A 0
                stands for a part that is not there.
        """


class SearchStrategy(ABC):
    """Which points of a space are tried: ``__init__(space: SearchSpace, *, settings)``.

    It is told everything in each call and keeps nothing, so a search that was killed goes on where it was.

    Attributes:
        space: As given.
    """

    def __init__(self, space: SearchSpace) -> None:
        self.space = space

    def objection(self) -> str | None:
        """Return why it cannot search this space, or None."""
        return None

    def prepare(self, ground: "Ground") -> Mapping[str, Any]:  # noqa: ARG002 - the contract of those that learn first
        """Do once what comes before the first trial, and return JSON data that each proposal is given.

        Where the search was killed meanwhile, it is called again with the same folder.

        Raises:
            RecipeError: The points of the space cannot be prepared for.
            KeyboardInterrupt: It was asked to stop, and can be gone on with.
        """
        return {}

    @abstractmethod
    def propose(
        self, history: Sequence[Trial], prepared: Mapping[str, Any], generator: torch.Generator
    ) -> Point | None:
        """Return the next point, or None where nothing is left to try; changes nothing.

        The same history, preparation and state of the generator give the same point. A point that was proposed before
        is not trained again: it has the values of the trial before, once that has some, and costs no trial.

        Args:
            history: All trials in the order of their proposals. Some may be running still, refused or failed, and have
                no values then.
            prepared: What ``prepare`` returned.
            generator: Of random numbers, seeded anew for each proposal.
        """
