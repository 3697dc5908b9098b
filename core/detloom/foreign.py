"""Checkpoints of other projects, read without executing anything: their tensors, by the names that they have there."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detloom.durable import MOST_TENSORS, not_finite, read_tensors
from detloom.errors import ArtifactError, reason
from detloom.inert import STORAGES, Inert, Name, TensorRef
from detloom.torch_files import TorchFile

__all__ = ["ForeignCheckpoint", "ForeignModule", "listed", "read_checkpoint"]

# Where checkpoints keep their network, the average of a training before its last weights.
PARTS = ("ema", "model_ema", "model", "model_state_dict", "state_dict", "module")
DEEPEST_PART = 4
# A module, and a table of its parts, may be named in several places, as in any graph: what is counted is paths, what
# lies under them, and their letters.
MOST_PARTS = 200_000
MOST_LETTERS = 16 * 2**20
DEEPEST_MODULE = 50
READ = frozenset(f"torch.{name}" for name in STORAGES.values())
DATA_PARALLEL = "module."
SHOWN = 5
LONGEST_SHOWN = 200


@dataclass(frozen=True, slots=True, eq=False)
class ForeignModule:
    """A module of a network that was saved whole. Whatever it holds is a stranger's, and may be anything.

    Attributes:
        kind: Dotted name of its class, as the file has it; empty where the file has another thing in its place.
        attributes: Its attributes, as ``unpickle.Unpickled`` describes values.
    """

    kind: str
    attributes: Mapping[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class ForeignCheckpoint:
    """What a file holds, before anybody knows what it means.

    Attributes:
        path: Where it was read.
        part: Where in the file the network lay, as in ``ema``; empty when it was the whole file.
        tensors: Tensors by name; floating ones in float32 or float64.
        modules: Modules by path, the network itself by the empty path; nothing when only tensors were saved.
    """

    path: Path
    part: str
    tensors: Mapping[str, Tensor]
    modules: Mapping[str, ForeignModule]


def read_checkpoint(path: Path | str) -> ForeignCheckpoint:
    """Return what a file of torch.save or of safetensors holds; nothing in it is executed.

    Raises:
        ArtifactError: It cannot be read, is damaged or hostile, or holds no network.
    """
    path = Path(path)
    if path.suffix == ".safetensors" or _looks_like_safetensors(path):
        tensors, metadata = read_tensors(path)
        if "recipe" in metadata:
            raise ArtifactError(f"{path}: this is an artifact of detloom already; use it as it is")
        part, modules = "", dict[str, ForeignModule]()
    else:
        file = TorchFile(path)
        part, references, modules = _network(file.value, path)
        tensors = {name: file.tensor(reference) for name, reference in references.items()}
    if all(name.startswith(DATA_PARALLEL) for name in tensors):
        tensors = {name.removeprefix(DATA_PARALLEL): tensor for name, tensor in tensors.items()}
        modules = {name.removeprefix(DATA_PARALLEL): module for name, module in modules.items()}
        # The wrapper is left out, so that the empty path names the network.
        if "module" in modules:
            modules[""] = modules.pop("module")
    if not tensors:
        raise ArtifactError(f"{path}: the network in this file has no tensors")
    odd = {str(tensor.dtype) for tensor in tensors.values()} - READ
    if odd:
        raise ArtifactError(
            f"{path}: the file has tensors of {', '.join(sorted(odd))}, which are not read; save it again in float32"
        )
    if broken := not_finite(tensors):
        raise ArtifactError(
            f"{path}: {listed(broken)} hold infinite numbers or NaN; half precision may have been too small for "
            "them: export the checkpoint again in float32"
        )
    # Half precision is for storing; folding and training start from float32.
    whole = {name: tensor.float() if _is_half(tensor) else tensor for name, tensor in tensors.items()}
    return ForeignCheckpoint(path, part, whole, modules)


def _looks_like_safetensors(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            # The length of a header that is JSON.
            return file.read(9)[8:] == b"{"
    except OSError as error:
        raise ArtifactError(f"{path}: the file cannot be read: {reason(error)}") from error


def _network(value: Any, path: Path) -> tuple[str, dict[str, TensorRef], dict[str, ForeignModule]]:
    part: list[str] = []
    while len(part) <= DEEPEST_PART:
        if isinstance(value, Inert):
            return ".".join(part), *_parts(value, path)
        if not isinstance(value, dict):
            break
        tensors = {name: each for name, each in value.items() if isinstance(each, TensorRef) and isinstance(name, str)}
        if len(tensors) > MOST_TENSORS:
            raise _endless(path)
        if tensors:
            return ".".join(part), tensors, {}
        inner = next((key for key in PARTS if value.get(key) is not None), None)
        if inner is None:
            break
        part.append(inner)
        value = value[inner]
    keys = listed([key for key in value if isinstance(key, str)]) if isinstance(value, dict) else ""
    raise ArtifactError(
        f"{path}: no network was found in this file; it holds {keys or type(value).__name__}. Accepted are a saved "
        "module or state_dict, "
        f"by itself or under one of {', '.join(PARTS)}"
    )


def _parts(network: Inert, path: Path) -> tuple[dict[str, TensorRef], dict[str, ForeignModule]]:
    """Return the tensors and modules of a network that was saved whole, named as ``state_dict`` names them."""
    tensors: dict[str, TensorRef] = {}
    modules: dict[str, ForeignModule] = {}
    for name, module in _walk(network, path):
        # What else stands in the place of a class may be nested without end, and must not be written out.
        modules[name] = ForeignModule(str(module.of) if isinstance(module.of, Name) else "", _state(module))
        volatile = _state(module).get("_non_persistent_buffers_set", ())
        for key, each in (*_table(module, "_parameters").items(), *_table(module, "_buffers").items()):
            if each is None or (isinstance(volatile, set) and key in volatile):
                continue
            full = f"{name}.{key}" if name else key
            if not isinstance(each, TensorRef) or full in tensors:
                raise ArtifactError(
                    f"{path}: {listed([full])} is no plain tensor with a name of its own; it is not read"
                )
            tensors[full] = each
        if len(tensors) > MOST_TENSORS:
            raise _endless(path)
    return tensors, modules


def _walk(network: Inert, path: Path) -> Iterator[tuple[str, Inert]]:
    waiting = [("", network, 0)]
    parts = letters = 0
    while waiting:
        name, module, depth = waiting.pop()
        tables = [_state(module).get(key) for key in ("_modules", "_parameters", "_buffers")]
        here = sum(len(table) for table in tables if isinstance(table, dict))
        parts += 1 + here
        # Before they are made: the path of each part begins with the path to here.
        letters += here * (1 + len(name)) + sum(
            len(key) for table in tables if isinstance(table, dict) for key in table if isinstance(key, str)
        )
        if parts > MOST_PARTS or letters > MOST_LETTERS or depth > DEEPEST_MODULE:
            raise _endless(path)
        yield name, module
        children = [
            (f"{name}.{key}" if name else key, child, depth + 1)
            for key, child in _table(module, "_modules").items()
            if isinstance(child, Inert)
        ]
        waiting += reversed(children)


def _endless(path: Path) -> ArtifactError:
    return ArtifactError(f"{path}: the network in this file has parts or names without end; it is damaged or hostile")


def _state(module: Inert) -> dict[Any, Any]:
    return module.state if isinstance(module.state, dict) else {}


def _table(module: Inert, key: str) -> dict[str, Any]:
    table = _state(module).get(key)
    return {name: each for name, each in table.items() if isinstance(name, str)} if isinstance(table, dict) else {}


def _is_half(tensor: Tensor) -> bool:
    return tensor.dtype in (torch.float16, torch.bfloat16)


def listed(names: Sequence[str]) -> str:
    """Return the first of some names, in text that stays short."""
    # A stranger's text may hold what a terminal would obey; written out, it may be longer than it was.
    shown = [name if name.isprintable() else repr(name) for name in map(_cut, names[:SHOWN])]
    shown = [_cut(name) for name in shown]
    return ", ".join(shown) + (f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else "")


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."
