"""What the checks of all kinds share: the demand, and how a component is constructed."""

import inspect
from collections.abc import Iterable
from functools import partial
from typing import Any

__all__ = ["Build", "check_objections", "check_signature", "demand"]

Build = partial[Any]
"""What builds the component anew, given what the assembler supplies."""


def demand(condition: object, message: str) -> None:
    """Raise an AssertionError with the message unless the condition holds."""
    if not condition:
        raise AssertionError(message)


def check_signature(build: Build, supplied: tuple[str, ...]) -> None:
    """Demand a constructor whose settings a recipe can hold."""
    parameters = list(inspect.signature(build.func).parameters.values())
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
