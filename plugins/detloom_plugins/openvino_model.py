"""A network's raw maps as OpenVINO's model: converted, quantised by NNCF, written and run.

Shape letters: B and N images, C channels, H and W rows and columns of the input, h and w of a map.
"""

import contextlib
import importlib
import io
import logging
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detloom.errors import ExportError, reason, suggest
from detloom.export.network import Network
from detloom_plugins.real_tensors import INPUT
from detloom_plugins.traced_operators import refusals, refused

if TYPE_CHECKING:
    from openvino import Model

__all__ = ["OpenvinoRunner", "converted", "library", "quantised", "save", "unknown_operators"]

_UNKNOWN = re.compile(r"No conversion rule found for operations: (.+)")
_MODULE = "__module."


class OpenvinoRunner:
    """Runs a file on this processor, a picture at a time, with as many threads as torch has.

    Args:
        path: The file ``.xml``.
        names: Its outputs, in the order in which they are wanted.
    """

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        settings = {
            # Without it, processors that have bfloat16 compute in it, and tell nobody.
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        self.compiled = library().Core().compile_model(path, "CPU", settings)
        self._names = list(names)

    def __call__(self, images_BCHW: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Return the raw maps ``[B, C, h, w]``."""
        runs = []
        for picture_1CHW in np.split(images_BCHW, len(images_BCHW)):
            found = self.compiled(np.ascontiguousarray(picture_1CHW))
            runs.append([found[name] for name in self._names])
        return [np.concatenate(maps) for maps in zip(*runs, strict=True)]


def library() -> ModuleType:
    """Return ``openvino``, imported so that it and NNCF send nobody word of what they are used for."""
    # Both report to a service for usage statistics where this package can be imported, unless a user has said no.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type] # what Python itself takes for "absent"
    return importlib.import_module("openvino")


def unknown_operators(network: Network) -> list[str]:
    """Return the names of the operators that OpenVINO cannot convert.

    Raises:
        ExportError: Conversion fails for another reason.
    """
    try:
        _converted(network)
    except Exception as error:
        if found := _UNKNOWN.search(str(error)):
            return found[1].split(", ")
        raise _failure(error) from error
    return []


def converted(network: Network) -> "Model":
    """Return the network as OpenVINO's model; operators are called ``__module.PATH/...``.

    Raises:
        ExportError: An operator has no conversion, named with its module; or conversion fails.
    """
    try:
        return _converted(network)
    except Exception as error:
        if found := _UNKNOWN.search(str(error)):
            raise refused(refusals(network, found[1].split(", "), by="OpenVINO")) from error
        raise _failure(error) from error


def quantised(network: Network, model: "Model", pictures_NCHW: Tensor, *, device: str, preset: str) -> "Model":
    """Return the model in 8-bit integers; modules that need more stay real."""
    library()
    import nncf

    pictures = nncf.Dataset(range(len(pictures_NCHW)), lambda index: pictures_NCHW[index : index + 1].numpy())
    kept = _operators_of(model, network.precise)
    with _quiet():
        made: Model = nncf.quantize(
            model,
            pictures,
            preset=nncf.QuantizationPreset(preset),
            target_device=nncf.TargetDevice(device),
            subset_size=len(pictures_NCHW),
            ignored_scope=nncf.IgnoredScope(names=kept, validate=False) if kept else None,
        )
    return made


def save(model: "Model", path: Path) -> None:
    """Write the files ``.xml`` and ``.bin``, weights as they are: by default OpenVINO would halve them."""
    # Names that nobody gave are counted through the process, and would make each file another.
    model.set_friendly_name(path.stem)
    for index, each in enumerate(model.get_ordered_ops()):
        if each.get_friendly_name() == each.get_name():
            each.set_friendly_name(f"{each.get_type_name()}_{index}")
    library().save_model(model, path, compress_to_fp16=False)


def _converted(network: Network) -> "Model":
    with warnings.catch_warnings():
        # Of torch, about the way in which OpenVINO traces.
        warnings.simplefilter("ignore")
        model: Model = library().convert_model(
            network.module, example_input=network.example_BCHW(), input=[1, 3, *network.image_size]
        )
    model.inputs[0].get_tensor().set_names({INPUT})
    for output, name in zip(model.outputs, network.map_names, strict=True):
        output.get_tensor().set_names({name})
    return model


def _failure(error: Exception) -> ExportError:
    return ExportError(f"OpenVINO cannot convert the network: {reason(error)}\n  Nothing was written.")


def _operators_of(model: "Model", paths: Sequence[str]) -> list[str]:
    """Return the names of the operators of some modules, and of the modules inside them.

    Raises:
        ExportError: A module has none.
    """
    names = [
        each.get_friendly_name()
        for each in model.get_ordered_ops()
        if each.get_type_name() not in ("Constant", "Result")
    ]
    kept = []
    for path in paths:
        start = f"{_MODULE}{path}"
        found = [name for name in names if name.startswith((f"{start}.", f"{start}/"))]
        if not found:
            known = sorted({name.removeprefix(_MODULE).partition("/")[0] for name in names})
            raise ExportError(
                f"{path}: is to stay real, and no operator of the model is of this module.{suggest(path, known)}\n"
                "  Name a module that computes something."
            )
        kept += found
    return kept


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep NNCF's progress from the reader."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(level)
