"""Where a network breaks: the module whose inputs do not fit together."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from detloom.errors import RecipeError, reason

__all__ = ["breaks_located"]


@contextmanager
def breaks_located(model: nn.Module, name: str) -> Iterator[None]:
    """Name the innermost module in which shapes did not fit, as in a concatenation of levels of different sizes.

    Args:
        model: What is run in the block.
        name: The recipe, put before the complaint.

    Raises:
        RecipeError: Torch refused the shapes.
    """
    running: list[str] = []
    paths = {id(module): path for path, module in model.named_modules()}

    def enter(module: nn.Module, _inputs: Any) -> None:
        running.append(f"{paths[id(module)] or 'the detector'} ({type(module).__name__})")

    def leave(_module: nn.Module, _inputs: Any, _outputs: Any) -> None:
        running.pop()

    handles = [
        handle
        for module in model.modules()
        for handle in (module.register_forward_pre_hook(enter), module.register_forward_hook(leave))
    ]
    try:
        yield
    except RuntimeError as error:
        at = running[-1] if running else "the detector"
        raise RecipeError(f"{name}: the network does not fit together in {at}: {reason(error)}") from error
    finally:
        for handle in handles:
            handle.remove()
