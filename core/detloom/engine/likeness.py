"""Whether the weights of two artifacts are those of one network, so that they have a mean."""

import torch
from torch import Tensor

from detloom.artifacts import Artifact
from detloom.kinds import Kind

__all__ = ["misfit"]

NETWORK = (Kind.BACKBONE, Kind.NECK, Kind.HEAD)
COUNTER = "num_batches_tracked"


def misfit(artifact: Artifact, first: Artifact) -> str | None:
    """Return why an artifact cannot be averaged with the first."""
    if artifact.folded:
        return (
            "this is a deployed form, and the average of such is not that of an average; "
            "average the training forms, then `detloom fuse`"
        )
    if artifact.names != first.names:
        return f"its classes are {', '.join(artifact.names)}; those of {first.path} are {', '.join(first.names)}"
    for kind in NETWORK:
        own, its = artifact.recipe.tables.get(kind, {}), first.recipe.tables.get(kind, {})
        for key in sorted({*own, *its}):
            if own.get(key) != its.get(key):
                return f"its [{kind}] has {key} = {own.get(key)!r}; that of {first.path} has {its.get(key)!r}"
    for name in sorted({*artifact.tensors, *first.tensors}):
        if name not in artifact.tensors or name not in first.tensors:
            where = artifact.path if name in artifact.tensors else first.path
            return f"the tensor {name} is only in {where}"
        if said := _tensor_complaint(artifact.tensors[name], first.tensors[name], name):
            return said
    return None


def _tensor_complaint(own: Tensor, its: Tensor, name: str) -> str | None:
    if own.shape != its.shape or own.dtype != its.dtype:
        return f"the tensor {name} is {_form(own)}; {_form(its)} fits"
    if not own.is_floating_point() and not name.endswith(COUNTER) and not torch.equal(own, its):
        return f"the tensor {name} holds integers that are not those of the first artifact, and have no mean"
    return None


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
