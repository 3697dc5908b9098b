"""States from which a run resumes: tensors and plain data in one safetensors file.

Tensors lie under the path of their place in the data; the rest is JSON in the metadata, in which a
tensor's place holds ``{"$tensor": name}`` and a table whose keys are no text ``{"$items": [...]}``.
Nothing is ever unpickled.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detloom.durable import read_tensors, write_tensors
from detloom.errors import ArtifactError

__all__ = ["load_state", "save_state"]

TENSOR, ITEMS, STATE = "$tensor", "$items", "state"


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write nested tables, lists, numbers, text and tensors, whole or not at all.

    Raises:
        ArtifactError: The file cannot be written; what was there before is intact.
    """
    tensors: dict[str, Tensor] = {}
    plain = json.dumps(_encoded(state, STATE, tensors))
    write_tensors(path, tensors, {STATE: plain})


def load_state(path: Path) -> dict[str, Any]:
    """Return what ``save_state`` wrote; tuples come back as lists.

    Raises:
        ArtifactError: The file is missing or broken.
    """
    tensors, metadata = read_tensors(path)
    try:
        state = _decoded(json.loads(metadata[STATE]), tensors)
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise ArtifactError(f"{path}: this is no state of a run: {error!r}") from error
    if not isinstance(state, dict):
        raise ArtifactError(f"{path}: this is no state of a run: it holds no table")
    return state


def _encoded(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[path] = value
        return {TENSOR: path}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value):
            return {key: _encoded(each, f"{path}.{key}", tensors) for key, each in value.items()}
        return {ITEMS: [[key, _encoded(each, f"{path}.{key}", tensors)] for key, each in value.items()]}
    if isinstance(value, list | tuple):
        return [_encoded(each, f"{path}.{index}", tensors) for index, each in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{path}: a state holds plain data and tensors, not {type(value).__name__}")


def _decoded(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(value, dict):
        if TENSOR in value:
            return tensors[value[TENSOR]]
        if ITEMS in value:
            return {key: _decoded(each, tensors) for key, each in value[ITEMS]}
        return {key: _decoded(each, tensors) for key, each in value.items()}
    if isinstance(value, list):
        return [_decoded(each, tensors) for each in value]
    return value
