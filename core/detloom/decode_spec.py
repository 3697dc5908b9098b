"""How raw maps become boxes and scores, as plain JSON data for a host without torch.

A host that knows the words below decodes every head; what a word means is stated here alone.

The map of a level is ``[priors * outputs, rows, columns]``: the outputs of the first prior come
first, in the order of ``outputs``. Where ``maps`` says so, a level has several maps, each with some
of the outputs: again those of the first prior first. ``x`` and ``y`` below are the column and row of the cell, counted
from 0; ``t`` is a raw output; everything is float32.
"""

from typing import Literal, NotRequired, TypedDict

__all__ = [
    "Center",
    "CenterAndSize",
    "DecodeSpec",
    "Distances",
    "Level",
    "MapSpec",
    "Output",
    "OutputName",
    "Size",
    "maps_of",
]

OutputName = Literal["center", "size", "distances", "objectness", "classes"]


class Level(TypedDict):
    """One lead level, finest first.

    Attributes:
        stride: Pixels of the network's input per cell.
        priors: Width and height in pixels of each prior of a cell; nominal where no size is in units of it.
    """

    stride: int
    priors: list[list[float]]


class Output(TypedDict):
    """Channels that belong together.

    Attributes:
        name: ``center`` (x, y), ``size`` (width, height), ``distances`` (left, top, right, bottom,
            ``bins`` of each), ``objectness`` or ``classes``.
        channels: How many.
    """

    name: OutputName
    channels: int


class MapSpec(TypedDict):
    """One raw map, where a level has several.

    Attributes:
        level: Index into ``levels``.
        outputs: Names of the outputs that it holds, in the order of ``outputs``.
    """

    level: int
    outputs: list[OutputName]


class Center(TypedDict):
    """``(scale * f(t) + shift + cell) * stride`` in pixels, ``cell`` being x or y.

    Attributes:
        activation: What f is: ``sigmoid``, or ``identity``.
    """

    activation: Literal["sigmoid", "identity"]
    scale: float
    shift: float


class Size(TypedDict):
    """``(scale * f(min(t, limit))) ** exponent * unit`` in pixels.

    Attributes:
        activation: What f is: ``sigmoid``, or ``exp``.
        limit: Largest ``t``; null for none.
        unit: ``prior`` for the width or height of the prior, ``stride`` for that of a cell.
    """

    activation: Literal["sigmoid", "exp"]
    limit: float | None
    scale: float
    exponent: float
    unit: Literal["prior", "stride"]


class CenterAndSize(TypedDict):
    """A box by its centre and size, from the outputs of these names."""

    form: Literal["center-and-size"]
    center: Center
    size: Size


class Distances(TypedDict):
    """A box by the distances of its sides from the cell's centre, ``(cell + 0.5) * stride``.

    A distance is the mean of 0, 1, ..., ``bins - 1``, weighted by the softmax of its logits, in strides.
    """

    form: Literal["distances"]
    bins: int


class DecodeSpec(TypedDict):
    """What a head's ``decode_spec`` returns.

    Attributes:
        num_classes: Number of classes.
        levels: In the order of the maps, where each has one.
        outputs: Of one prior, in the order of its channels.
        box: How the box comes about.
        score: Outputs whose sigmoids, multiplied, are the score of each class.
        maps: What each map holds, where a level has several.
        suppression: Whether an object can have several boxes, so that those which overlap a better one of
            their class are to be dropped; else the best boxes are taken as they are.
    """

    num_classes: int
    levels: list[Level]
    outputs: list[Output]
    box: CenterAndSize | Distances
    score: list[Literal["objectness", "classes"]]
    suppression: bool
    maps: NotRequired[list[MapSpec]]


def maps_of(spec: DecodeSpec) -> list[MapSpec]:
    """Return what each map holds, in the order of the maps: all outputs of a level, unless the spec says otherwise."""
    everything: list[OutputName] = [output["name"] for output in spec["outputs"]]
    return spec.get("maps") or [{"level": level, "outputs": everything} for level in range(len(spec["levels"]))]
