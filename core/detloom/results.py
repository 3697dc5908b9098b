"""What assigners and criteria return, checked where it enters the core.

A wrong index would otherwise fail far away, on a GPU with a message about no line in particular.
The checks ask the device for values, so they are for a detector's first batch.

Shape letters: B images, P priors, T targets of the batch, M matches.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from detloom.errors import PluginError
from detloom.interfaces import Assigner, Criterion
from detloom.structures import Assignment, Predictions, Targets

__all__ = ["check_assignment", "check_losses"]


def check_assignment(assignment: object, assigner: Assigner, predictions: Predictions, targets: Targets) -> None:
    """Hold what an assigner returned against its contract.

    Raises:
        PluginError: It breaks it; names the class, the field, and what was expected.
    """
    for complaint in _about_assignment(assignment, predictions, targets):
        raise PluginError(f"{_name(assigner)} returned {complaint}. See detloom.structures.Assignment.")


def check_losses(losses: object, criterion: Criterion) -> None:
    """Hold what a criterion returned against its contract.

    Raises:
        PluginError: It breaks it; names the class, the loss, and what was expected.
    """
    for complaint in _about_losses(losses):
        raise PluginError(f"{_name(criterion)} returned {complaint}. See detloom.interfaces.Criterion.")


def _about_assignment(assignment: object, predictions: Predictions, targets: Targets) -> Iterator[str]:
    if not isinstance(assignment, Assignment):
        yield f"a {type(assignment).__name__}, not an Assignment"
        return
    num_priors = predictions.priors.num_priors
    limits = {
        "image_M": (assignment.image_M, predictions.num_images, "images"),
        "prior_M": (assignment.prior_M, num_priors, "priors"),
        "target_M": (assignment.target_M, targets.num_targets, "targets"),
    }
    if not isinstance(assignment.image_M, Tensor) or assignment.image_M.dim() != 1:
        yield f"image_M as {assignment.image_M!r}, not one number a match"
        return
    count = assignment.num_matches
    device = predictions.boxes_BP4.device
    for name, (index_M, _, _) in limits.items():
        yield from _about_tensor(name, index_M, torch.int64, (count,), device)
    yield from _about_tensor("quality_M", assignment.quality_M, torch.float32, (count,), device)
    if assignment.ignored_BP is not None:
        shape = (predictions.num_images, num_priors)
        yield from _about_tensor("ignored_BP", assignment.ignored_BP, torch.bool, shape, device)
    if count == 0:
        return
    for name, (index_M, limit, things) in limits.items():
        low, high = int(index_M.min()), int(index_M.max())
        if low < 0 or high >= limit:
            yield f"{name} from {low} to {high}, but there are {limit} {things}: 0 to {limit - 1}"
    if bool((targets.image_T[assignment.target_M] != assignment.image_M).any()):
        yield "matches whose target_M lies in another image than image_M says"


def _about_losses(losses: object) -> Iterator[str]:
    if not isinstance(losses, Mapping) or not losses:
        yield f"{type(losses).__name__} {losses!r}, not a dict of at least one named loss"
        return
    for name, loss in losses.items():
        if not isinstance(name, str):
            yield f"a loss called {name!r}, which is no text"
        elif not isinstance(loss, Tensor):
            yield f"loss '{name}' as a {type(loss).__name__}, not a tensor"
        elif loss.dim() != 0 or not loss.is_floating_point():
            yield f"loss '{name}' of shape {list(loss.shape)} and {loss.dtype}, not one floating-point number"


def _about_tensor(
    name: str, tensor: object, dtype: torch.dtype, shape: tuple[int, ...], device: torch.device
) -> Iterator[str]:
    if not isinstance(tensor, Tensor):
        yield f"{name} as a {type(tensor).__name__}, not a tensor"
    elif tensor.dtype != dtype or tuple(tensor.shape) != shape:
        yield f"{name} of shape {list(tensor.shape)} and {tensor.dtype}, not of shape {list(shape)} and {dtype}"
    elif tensor.device != device:
        yield f"{name} on {tensor.device}, but the predictions are on {device}"
    elif tensor.requires_grad:
        yield f"{name} with a gradient; detach it"


def _name(component: object) -> str:
    return f"{type(component).__module__}.{type(component).__qualname__}"
