"""What the checks of all kinds share: the demand, and how a component is constructed."""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from detloom.errors import RecipeError

__all__ = ["Build", "check_numbers", "check_objections", "check_signature", "demand"]


@dataclass(frozen=True, slots=True)
class Build:
    """What builds the component anew, given what the assembler supplies.

    Attributes:
        cls: The component.
        settings: Its keyword arguments.
        example: What returns something for it to work on, of kinds that need it.
        kept: What the checks of one component make once and all look at.
    """

    cls: type[Any]
    settings: Mapping[str, Any]
    example: Callable[[], Any] | None = None
    kept: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __call__(self, *supplied: Any) -> Any:
        """Return a new one; where weights are random they are the same each time, and no global number is drawn."""
        with torch.random.fork_rng(devices=()):
            # torch.manual_seed also seeds every device, which takes longer than to build most components.
            torch.default_generator.manual_seed(0)
            return self.cls(*supplied, **self.settings)


def demand(condition: object, message: str) -> None:
    """Raise an AssertionError with the message unless the condition holds."""
    if not condition:
        raise AssertionError(message)


def check_signature(build: Build, supplied: tuple[str, ...]) -> None:
    """Demand a constructor whose settings a recipe can hold."""
    parameters = list(inspect.signature(build.cls).parameters.values())
    positional = [each.name for each in parameters if each.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    demand(
        tuple(positional) == supplied,
        f"__init__ takes {positional} by position; make it ({', '.join(('self', *supplied, '*'))}, settings), "
        "so that every setting is keyword-only",
    )
    for each in parameters:
        demand(
            each.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD),
            f"__init__ takes *{each.name}; name the settings one by one, so that a recipe can be checked against them",
        )
        demand(
            each.annotation is not inspect.Parameter.empty,
            f"the setting '{each.name}' has no type; annotate it, so that a recipe can be checked against it",
        )


def check_numbers(build: Build, *supplied: Any) -> None:
    """Demand that a number that makes no sense is refused in the words of recipes, or is borne."""
    for each in inspect.signature(build.cls).parameters.values():
        value = build.settings.get(each.name, each.default)
        if each.kind is not inspect.Parameter.KEYWORD_ONLY or isinstance(value, bool):
            continue
        if isinstance(value, int):
            wrong: tuple[float, ...] = (-1, 0)
        elif isinstance(value, float):
            wrong = (-1.0, 0.0, math.inf)
        else:
            continue
        for number in wrong:
            try:
                replace(build, settings={**build.settings, each.name: number})(*supplied)
            except RecipeError as error:
                demand(
                    each.name in str(error),
                    f"{each.name}={number} is refused without its name: {error}; say which setting is wrong",
                )
            except Exception as error:
                raise AssertionError(
                    f"{each.name}={number} raises {type(error).__name__}: {error}; raise RecipeError in __init__ that "
                    "says which setting, what is wrong, and the limit"
                ) from error


def check_objections(objections: Iterable[object]) -> None:
    """Demand reasons or None, and that some kind of head is served."""
    served = False
    for objection in objections:
        demand(
            objection is None or (isinstance(objection, str) and objection.strip()),
            f"objection() returned {objection!r}; return None where the head is served, else the reason as text",
        )
        served |= objection is None
    demand(served, "objection() refuses every kind of head that the kit knows; return None for those that are served")
