"""Transforms of albumentations by name, boxes included."""

import inspect
import os
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from detloom.data.reading import Picture
from detloom.data.settings import ExtraTransform
from detloom.errors import RecipeError, suggest

__all__ = ["ExtraTransforms"]

TRIAL_SIDE = 128


class ExtraTransforms:
    """A chain of transforms that keep a picture's size.

    Args:
        transforms: Names and settings.
        min_side: Boxes with a side of at most this, in pixels, are left out.

    Raises:
        RecipeError: A name or a setting is wrong, or a transform changes the size of a picture.
    """

    def __init__(self, transforms: Sequence[ExtraTransform], min_side: float) -> None:
        albumentations = _import_albumentations()
        steps = [_build(albumentations, position, each) for position, each in enumerate(transforms)]
        self.chain = _compose(albumentations, steps, min_side)

    def apply(
        self, picture: Picture, boxes_N4: NDArray[np.float32], labels_N: NDArray[np.int64], generator: Generator
    ) -> tuple[Picture, NDArray[np.float32], NDArray[np.int64]]:
        """Return the transformed picture, its boxes and labels."""
        self.chain.set_random_seed(int(generator.integers(2**31)))
        result = self.chain(image=picture, bboxes=boxes_N4, positions=np.arange(len(boxes_N4)))
        kept_N = np.asarray(result["positions"], np.int64).reshape(-1)
        boxes = np.asarray(result["bboxes"], np.float32).reshape(-1, 4)
        return np.ascontiguousarray(result["image"], np.uint8), boxes, labels_N[kept_N]


def _import_albumentations() -> Any:
    # It asks the network for its newest version when it is imported, unless told not to.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations

    return albumentations


def _build(albumentations: Any, position: int, transform: ExtraTransform) -> Any:
    where = f"[augment] extra[{position}]"
    cls = getattr(albumentations, transform.use, None)
    if not (inspect.isclass(cls) and issubclass(cls, albumentations.BasicTransform)):
        known = [
            name
            for name, value in vars(albumentations).items()
            if inspect.isclass(value) and issubclass(value, albumentations.BasicTransform)
        ]
        raise RecipeError(
            f"{where}: albumentations has no transform '{transform.use}'.{suggest(transform.use, known)}\n"
            f"  It has {len(known)}, such as Blur, GaussNoise and ToGray; names are written as in its documentation."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            built = cls(**transform.settings)
    except (TypeError, ValueError, Warning) as error:
        raise RecipeError(f"{where}: {transform.use} cannot take its settings: {error}") from error
    _try_out(albumentations, cls, transform, where)
    return built


def _compose(albumentations: Any, steps: list[Any], min_side: float) -> Any:
    boxes = albumentations.BboxParams(
        format="pascal_voc",
        label_fields=["positions"],
        min_width=min_side,
        min_height=min_side,
        clip=True,
        filter_invalid_bboxes=True,
    )
    with warnings.catch_warnings():
        # It warns of chains that leave boxes where they are; here that is as wanted.
        warnings.filterwarnings("ignore", message="Got processor for bboxes", category=UserWarning)
        return albumentations.Compose(steps, bbox_params=boxes)


def _try_out(albumentations: Any, cls: Any, transform: ExtraTransform, where: str) -> None:
    picture = np.zeros((TRIAL_SIDE, 2 * TRIAL_SIDE, 3), np.uint8)
    boxes_14 = np.array([[10, 20, 60, 90]], np.float32)
    chain = _compose(albumentations, [cls(**{**transform.settings, "p": 1.0})], 0.0)
    try:
        result = chain(image=picture, bboxes=boxes_14, positions=np.zeros(1, np.int64))["image"]
    except Exception as error:
        raise RecipeError(f"{where}: {transform.use} fails on a picture with boxes: {error}") from error
    if result.shape != picture.shape or result.dtype != np.uint8:
        raise RecipeError(
            f"{where}: {transform.use} turns a picture of {picture.shape} {picture.dtype} into {result.shape} "
            f"{result.dtype}; only transforms that keep both can be used here."
        )
