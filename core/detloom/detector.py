"""A detector: backbone, neck, head, and what trains them.

Shape letters: see ``structures``.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from detloom.engine.settings import Precision
from detloom.errors import DataError
from detloom.interfaces import Assigner, Backbone, Criterion, Head, Neck, ReparamPass
from detloom.results import check_assignment, check_losses
from detloom.structures import Assignment, Detections, FeatureSpec, HeadMaps, Predictions, Role, Targets

if TYPE_CHECKING:
    from detloom.engine.sources import Source
    from detloom.recipe import Recipe

__all__ = ["Detector"]


@dataclass(frozen=True, slots=True, eq=False)
class _Deployed:
    """A folded copy, and what it was made of.

    Weights are compared value by value: versions of tensors miss what is written through ``.data``.
    """

    twin: "Detector"
    device: torch.device
    modules: tuple[object, ...]
    tensors: tuple[Tensor, ...]

    @classmethod
    def of(cls, detector: "Detector", device: torch.device) -> "_Deployed":
        modules, tensors = cls._parts(detector)
        return cls(detector.fuse().to(device), device, modules, tuple(tensor.detach().clone() for tensor in tensors))

    def is_of(self, detector: "Detector", device: torch.device) -> bool:
        modules, tensors = self._parts(detector)
        return (
            self.device == device
            and len(self.modules) == len(modules)
            and all(mine is its for mine, its in zip(self.modules, modules, strict=True))
            and len(self.tensors) == len(tensors)
            and all(_is_same(mine, its) for mine, its in zip(self.tensors, tensors, strict=True))
        )

    @staticmethod
    def _parts(detector: "Detector") -> tuple[tuple[object, ...], tuple[Tensor, ...]]:
        # Without the detector itself, which would keep itself alive.
        return (*list(detector.modules())[1:], *detector.passes), tuple(
            chain(detector.parameters(), detector.buffers())
        )


class Detector(nn.Module):
    """Backbone, neck and head, with an assigner and a criterion to train them.

    Args:
        backbone: Pictures to levels.
        neck: Levels to levels, or nothing.
        head: Levels to predictions.
        assigner: Which prior learns which target.
        criterion: What the matches cost.
        names: Class names by index.
        recipe: What the detector was assembled from.
        passes: Reparam passes that make the deployed form, in order.
    """

    def __init__(
        self,
        backbone: Backbone,
        neck: Neck | None,
        head: Head,
        assigner: Assigner,
        criterion: Criterion,
        *,
        names: Sequence[str],
        recipe: "Recipe | None" = None,
        passes: Sequence[ReparamPass] = (),
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.head = head
        self.assigner = assigner
        self.criterion = criterion
        self.names = tuple(names)
        self.recipe = recipe
        self.passes = tuple(passes)
        self.auxiliary_weight = 0.25 if recipe is None else recipe.train.auxiliary_weight
        self._is_checked = False
        self._kept: _Deployed | None = None

    @property
    def level_specs(self) -> tuple[FeatureSpec, ...]:
        """Return what the head is given."""
        return self.backbone.out_specs if self.neck is None else self.neck.out_specs

    @property
    def strides(self) -> tuple[int, ...]:
        """Return the strides of the lead levels."""
        return tuple(spec.stride for spec in self.level_specs if spec.role is Role.LEAD)

    @property
    def max_stride(self) -> int:
        """Return the number that height and width of the input must be multiples of."""
        return max(spec.stride for spec in (*self.backbone.out_specs, *self.level_specs))

    def forward(self, images_BCHW: Tensor, targets: Targets | None = None) -> HeadMaps | dict[str, Tensor]:
        """Return the raw maps, or the named losses when targets are given.

        Args:
            images_BCHW: RGB in [0, 1].
            targets: The objects of the batch.
        """
        levels = self.backbone(images_BCHW)
        if self.neck is not None:
            levels = self.neck(levels)
        maps: HeadMaps = self.head(levels)
        return maps if targets is None else self._losses(maps, targets)

    def predictions(self, images_BCHW: Tensor) -> Predictions:
        """Return the decoded lead predictions of RGB pictures in [0, 1]."""
        maps = self(images_BCHW)
        return self.head.decode(maps.lead)

    def fuse(self) -> "Detector":
        """Return the deployed form: a copy in eval mode with the recipe's reparam passes applied."""
        from detloom.reparam import fold

        return fold(self, self.passes)[0]

    def deployed(self, device: torch.device | str | None = None) -> "Detector":
        """Return the deployed form on a device, kept between calls until a weight or a module changes.

        Run it, but do not change it: every caller has the same one. ``fuse`` makes one of your own.
        """
        wanted = next(self.parameters()).device if device is None else torch.device(device)
        if self._kept is None or not self._kept.is_of(self, wanted):
            # Two copies at once are not needed.
            self._kept = None
            self._kept = _Deployed.of(self, wanted)
        return self._kept.twin

    def predict(
        self,
        sources: "Source | Sequence[Source]",
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
    ) -> list[Detections]:
        """Return what is found in pictures, in their order; what is None is as the recipe says.

            for found in detector.predict(["a.jpg", "b.jpg"], score=0.4, classes=["coin"]):
                print(found.source, found.boxes_N4.tolist())

        The deployed form is run, where the recipe's ``[predict] fuse`` does not say otherwise.

        Args:
            sources: Picture or video files, folders, patterns with ``*``, RGB arrays ``uint8 [H, W, 3]``,
                pillow images; one or several.
            score: Least score of a detection, from 0 to 1.
            overlap: IoU from which the lesser of two boxes is dropped, from 0 to 1.
            max_detections: Most detections of a picture.
            classes: Names or indices of the classes to look for; None looks for all.
            agnostic: Let boxes of different classes suppress one another.
            batch: Pictures of a forward pass.
            image_size: Side of the canvas that pictures are fitted on, or its height and width; multiples of
                ``max_stride``.
            precision: Of the forward pass: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
            device: Where to compute, as ``"cuda"``; None stays where the detector is.
            on_bad: Called with each file that cannot be read, which is then left out; without it, all
                such files are named in one error at the end.

        Raises:
            DataError: A source is not there or cannot be read.
            RecipeError: A setting is out of its range, or a class or device is unknown.
        """
        from detloom.engine.predict import stream

        found = stream(
            self,
            sources,
            score=score,
            overlap=overlap,
            max_detections=max_detections,
            classes=classes,
            agnostic=agnostic,
            batch=batch,
            image_size=image_size,
            precision=precision,
            device=device,
            on_bad=on_bad,
        )
        return [detections for _, detections in found]

    def __deepcopy__(self, memo: dict[int, Any]) -> "Detector":
        # The recipe is shared: it does not change, and study copies would carry it many times.
        twin = copy.copy(self)
        memo[id(self)] = twin
        twin.__dict__ = {
            key: value if key == "recipe" else copy.deepcopy(value, memo) for key, value in self.__getstate__().items()
        }
        return twin

    def __getstate__(self) -> dict[str, Any]:
        # The deployed form can be made again.
        return {**self.__dict__, "_kept": None}

    def _losses(self, maps: HeadMaps, targets: Targets) -> dict[str, Tensor]:
        targets = targets.in_order()
        # Decoding and the losses need float32: half-precision pixels are too coarse for overlaps.
        with torch.autocast(targets.boxes_T4.device.type, enabled=False):
            lead = self.head.decode(maps.lead)
            with torch.no_grad():
                fixed_lead = lead.detach()
                assignment = self.assigner.assign(fixed_lead, targets)
            losses = self._checked_losses(lead, assignment, targets)
            if maps.auxiliary:
                auxiliary = self.head.decode(maps.auxiliary)
                with torch.no_grad():
                    coarse = self.assigner.assign_auxiliary(fixed_lead, auxiliary.detach(), targets)
                for name, loss in self._checked_losses(auxiliary, coarse, targets).items():
                    losses[f"auxiliary_{name}"] = self.auxiliary_weight * loss
        self._is_checked = True
        return losses

    def _checked_losses(self, predictions: Predictions, assignment: Assignment, targets: Targets) -> dict[str, Tensor]:
        # Once only: looking at values waits for the device.
        if self._is_checked:
            return dict(self.criterion.losses(predictions, assignment, targets))
        check_assignment(assignment, self.assigner, predictions, targets)
        losses = self.criterion.losses(predictions, assignment, targets)
        check_losses(losses, self.criterion)
        return dict(losses)


def _is_same(a: Tensor, b: Tensor) -> bool:
    return a.device == b.device and a.dtype == b.dtype and torch.equal(a, b)
