"""The ``[data]`` and ``[augment]`` sections of a recipe. Light: imports no torch."""

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["AugmentSettings", "DataSettings", "ExtraTransform", "part_complaint", "size_complaint"]

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
ROUNDING = 1e-9
Side = Annotated[int, Field(ge=32, le=8192)]


class DataSettings(BaseModel):
    """What is read, at which size, and how."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    train: str = Field(default="train", description="Name of the split to learn from.")
    val: str = Field(default="val", description="Name of the split to measure on.")
    image_size: Side | tuple[Side, Side] = Field(
        default=640, description="Side of the square canvas, or its height and width, in pixels."
    )
    holdout: float = Field(
        default=0.0,
        ge=0.0,
        lt=1.0,
        description="Fraction of the train split kept out of training and measured on instead of the val split.",
    )
    fraction: float = Field(
        default=1.0,
        gt=0.0,
        le=1.0,
        description="Share of the pictures to learn from that is used, of a random order; all are measured on.",
    )
    part: int = Field(
        default=0,
        ge=0,
        description="Which of the disjoint parts that have this fraction of the pictures; 0: the first.",
    )
    part_seed: int = Field(
        default=0, ge=0, description="Of the random order; runs that have it in common have parts of one division."
    )
    skip_bad: bool = Field(default=False, description="Go on without the faulty pictures and boxes.")
    workers: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        default="auto",
        description="Processes that prepare batches; 0: training itself; auto: none on a CPU, some with a GPU.",
    )
    cache: Literal["auto", "ram", "off"] = Field(
        default="auto",
        description="Keep decoded pictures in memory; auto does so where they fit in a quarter of what is free.",
    )


class ExtraTransform(BaseModel):
    """A transform of albumentations by name, with its own settings beside it."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    use: str = Field(description="Name of the transform, such as Blur.")

    @property
    def settings(self) -> dict[str, Any]:
        """Return the keyword arguments of the transform."""
        return dict(self.model_extra or {})


class AugmentSettings(BaseModel):
    """How training pictures vary; the meaning of each number is that of YOLOv7's training.

    The defaults are those published for its smallest model.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    mosaic: Probability = Field(default=1.0, description="Share of samples composed of several pictures.")
    mosaic_nine: Probability = Field(default=0.2, description="Share of the mosaics that have nine pictures, not four.")
    mosaic_off_epochs: int = Field(
        default=0, ge=0, description="Last epochs in which there is neither mosaic nor mixup."
    )
    mixup: Probability = Field(default=0.05, description="Share of the mosaics that are blended with another.")
    mixup_beta: float = Field(default=8.0, gt=0.0, description="Both parameters of the blend's beta distribution.")
    flip_horizontal: Probability = Field(default=0.5, description="Share of samples mirrored left to right.")
    flip_vertical: Probability = Field(default=0.0, description="Share of samples turned upside down.")
    hue: float = Field(default=0.015, ge=0.0, le=0.4, description="Largest relative change of the hue.")
    saturation: float = Field(default=0.7, ge=0.0, le=1.0, description="Largest relative change of the saturation.")
    value: float = Field(default=0.4, ge=0.0, le=1.0, description="Largest relative change of the brightness.")
    degrees: float = Field(default=0.0, ge=0.0, le=180.0, description="Largest rotation in degrees.")
    translate: float = Field(default=0.1, ge=0.0, le=0.5, description="Largest shift as a fraction of the canvas.")
    scale: float = Field(default=0.5, ge=0.0, lt=1.0, description="Sizes are drawn from 1 - scale to 1.1 + scale.")
    shear: float = Field(default=0.0, ge=0.0, lt=90.0, description="Largest shear in degrees.")
    perspective: float = Field(default=0.0, ge=0.0, le=0.001, description="Largest perspective, per pixel.")
    multi_scale: float = Field(
        default=0.0, ge=0.0, lt=1.0, description="Batches vary in size by this fraction, up and down."
    )
    min_side: float = Field(
        default=2.0, ge=0.0, description="Objects with a side of at most this are left out, pixels."
    )
    min_area_ratio: float = Field(
        default=0.1, ge=0.0, lt=1.0, description="Objects of which at most this share is left are left out."
    )
    max_aspect: float = Field(default=20.0, gt=1.0, description="Objects at least this many times longer are left out.")
    extra: tuple[ExtraTransform, ...] = Field(
        default=(), description='More transforms of albumentations, such as { use = "Blur", p = 0.1 }.'
    )


def part_complaint(data: DataSettings) -> str | None:
    """Return why there is no such part of the data, if there is none."""
    # Thirds may be written as 0.3333333333333333, which three times is not quite 1.
    count = math.floor(1 / data.fraction + ROUNDING)
    if data.part < count:
        return None
    # Rounded down, so that so many of them fit.
    fits = math.floor(1e6 / (data.part + 1)) / 1e6
    parts = "is only the part 0" if count == 1 else f"are the parts 0 to {count - 1}"
    return (
        f"'part' is {data.part}, but with fraction = {data.fraction:g} there {parts}; "
        f"for {data.part + 1} equal parts, set fraction = {fits:g} or less"
    )


def size_complaint(canvas_size: int | tuple[int, int], stride: int) -> str | None:
    """Return what is wrong with a canvas for a network whose largest stride this is, if anything."""
    height, width = (canvas_size, canvas_size) if isinstance(canvas_size, int) else canvas_size
    if min(height, width) > 0 and height % stride == 0 and width % stride == 0:
        return None
    near = [max(round(side / stride), 1) * stride for side in (height, width)]
    return (
        f"image_size is {height} x {width}, but this detector needs multiples of its largest stride, {stride}; "
        f"the nearest is {near[0]} x {near[1]}"
    )
