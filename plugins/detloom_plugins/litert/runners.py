"""Runs LiteRT files on this machine.

XNNPACK, which LiteRT takes by default, is fast and rounds in its own way. The reference kernels have the arithmetic of
LiteRT for Microcontrollers to the bit, which is what kernels of chips are held to.

Shape letters: see ``detloom.export.network``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detloom.errors import ExportError, reason
from detloom.export.network import Runner
from detloom.host_spec import TensorSpec

__all__ = ["make_runner"]


def make_runner(
    file: Path | bytes, tensors: Sequence[TensorSpec], *, reference: bool = False, threads: int = 1
) -> Runner:
    """Return what runs a file, one picture at a time.

    Args:
        file: Its path, or its bytes.
        tensors: Its outputs in the order of the network's maps.
        reference: Whether to use the reference kernels.
        threads: Of XNNPACK.

    Raises:
        ExportError: LiteRT does not take the file.
    """
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    name = "the LiteRT file" if isinstance(file, bytes) else str(file)
    source: Any = {"model_content": file} if isinstance(file, bytes) else {"model_path": name}
    kernels = OpResolverType.BUILTIN_REF if reference else OpResolverType.AUTO
    try:
        interpreter: Any = Interpreter(**source, num_threads=threads, experimental_op_resolver_type=kernels)
        interpreter.allocate_tensors()
    except (RuntimeError, ValueError) as error:
        raise ExportError(
            f"{name}: LiteRT cannot run it here: {reason(error)}. This is a mistake of the exporter, please report it "
            "with the recipe"
        ) from error
    (picture,) = interpreter.get_input_details()
    by_name = {each["name"]: each for each in interpreter.get_output_details()}
    outputs = [by_name[each["name"]] for each in tensors]

    def run(images_BCHW: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        found: list[list[NDArray[np.float32]]] = [[] for _ in outputs]
        for image_CHW in images_BCHW:
            interpreter.set_tensor(picture["index"], _quantised(image_CHW.transpose(1, 2, 0)[None], picture))
            interpreter.invoke()
            for maps, output in zip(found, outputs, strict=True):
                maps.append(_real(interpreter.get_tensor(output["index"]), output).transpose(0, 3, 1, 2))
        return [np.concatenate(maps) for maps in found]

    return run


def _quantised(image_BHWC: NDArray[np.float32], tensor: Any) -> NDArray[Any]:
    scale, zero_point = tensor["quantization"]
    if tensor["dtype"] is np.float32:
        return np.ascontiguousarray(image_BHWC)
    numbers: NDArray[Any] = np.clip(np.round(image_BHWC / scale) + zero_point, -128, 127).astype(np.int8)
    return numbers


def _real(numbers: NDArray[Any], tensor: Any) -> NDArray[np.float32]:
    scale, zero_point = tensor["quantization"]
    if tensor["dtype"] is np.float32:
        return np.asarray(numbers, np.float32)
    return (numbers.astype(np.float32) - np.float32(zero_point)) * np.float32(scale)
