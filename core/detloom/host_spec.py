"""What a host must know to run an exported file, as plain JSON data, written beside it as ``NAME.host.json``.

NAME is that of the export's folder. A tensor holds ``q``; its real value is ``(q - zero_point) * scale``, and ``q``
itself where the scale is null. The host fits a picture on a canvas of the input's size, as large as it goes, in the
middle, the rest filled with ``fill``; real inputs are RGB in [0, 1].
"""

from typing import Literal, TypedDict

from detloom.decode_spec import DecodeSpec

__all__ = ["HostSpec", "InputSpec", "Layout", "NumberType", "Selection", "TensorSpec"]

Layout = Literal["NCHW", "NHWC"]
NumberType = Literal["int8", "uint8", "int16", "float16", "float32"]


class InputSpec(TypedDict):
    """The input: RGB, batch of one unless the file says otherwise.

    Attributes:
        name: In the file.
        layout: Order of the axes.
        height: Rows.
        width: Columns.
        dtype: Type of ``q``.
        scale: See the module; null for real numbers.
        zero_point: 0 for real numbers.
        fill: Value of the canvas where there is no picture, of 0 to 255.
    """

    name: str
    layout: Layout
    height: int
    width: int
    dtype: NumberType
    scale: float | None
    zero_point: int
    fill: int


class TensorSpec(TypedDict):
    """An output: map ``n`` of ``decode_spec.maps_of`` is tensor ``n`` of the host's list.

    Attributes:
        name: In the file.
        layout: Order of the axes.
        shape: With the batch, in the order of the layout.
        dtype: Type of ``q``.
        scale: See the module; null for real numbers.
        zero_point: 0 for real numbers.
    """

    name: str
    layout: Layout
    shape: list[int]
    dtype: NumberType
    scale: float | None
    zero_point: int


class Selection(TypedDict):
    """Which detections are kept, unless the host asks for others.

    Attributes:
        score: Least score, from 0 to 1.
        overlap: IoU from which the lesser of two boxes is dropped, where the head's are to be suppressed.
        max_detections: Of a picture.
        candidates: Most boxes that enter the suppression.
        agnostic: Whether boxes of different classes suppress one another.
    """

    score: float
    overlap: float
    max_detections: int
    candidates: int
    agnostic: bool


class HostSpec(TypedDict):
    """The whole description.

    Attributes:
        format: 1.
        names: Class names by index.
        input: Of the file.
        tensors: Outputs of the file, in the order of the maps, which may not be the file's; names tell them apart.
        decode: How real maps become boxes and scores.
        selection: Which are kept.
    """

    format: Literal[1]
    names: list[str]
    input: InputSpec
    tensors: list[TensorSpec]
    decode: DecodeSpec
    selection: Selection
