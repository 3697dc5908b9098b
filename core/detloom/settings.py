"""Settings: a recipe's table against the keyword arguments of the class that it names.

The checking is pydantic's, on a model made from the constructor's signature, in strict JSON mode:
TOML arrays become tuples, but no text becomes a number.
"""

import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from detloom.errors import suggest
from detloom.kinds import Kind
from detloom.workshop import contracts

__all__ = [
    "InitialWeights",
    "Where",
    "complaints_of",
    "initial_weights",
    "nested_components",
    "settings_model",
    "validated",
]

InitialWeights = Annotated[str, "initial weights"]
"""Type of a setting that names a file of weights to start from.

An artifact has weights of its own, so its recipe names no such file.
"""

Where = str | Callable[[str], str]
"""File and table to name in a complaint, or what tells them for the key concerned."""


def settings_model(cls: type[Any]) -> type[BaseModel]:
    """Return the pydantic model of a component's settings: its keyword-only arguments."""
    hints = _hints(cls)
    nested = nested_components(cls)
    fields: dict[str, Any] = {
        name: (
            # A component of its own is built from its table later.
            dict[str, Any] | None if name in nested else hints.get(name, Any),
            ... if parameter.default is parameter.empty else parameter.default,
        )
        for name, parameter in inspect.signature(cls).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    return create_model(cls.__name__, __config__=ConfigDict(extra="forbid", protected_namespaces=()), **fields)


def nested_components(cls: type[Any]) -> dict[str, Kind]:
    """Return the settings of a component that are components themselves, and their kinds."""
    kinds = {contract: kind for kind, contract in contracts().items()}
    found = {}
    for name, hint in _hints(cls).items():
        choices = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        for each in choices:
            if each is not NoneType and each in kinds:
                found[name] = kinds[each]
    return found


def initial_weights(cls: type[Any]) -> frozenset[str]:
    """Return the settings of a component that name files of initial weights."""
    return frozenset(name for name, hint in _hints(cls).items() if hint == InitialWeights)


def validated(model: type[BaseModel], table: Mapping[str, Any], where: Where) -> tuple[BaseModel | None, list[str]]:
    """Return the settings of a table, or nothing and every complaint about it.

    Args:
        model: What the table must fit.
        table: Plain data, as TOML gives it.
        where: File and table, put before each complaint.
    """
    try:
        return model.model_validate_json(json.dumps(table, default=str), strict=True), []
    except ValidationError as error:
        return None, complaints_of(error, model.model_fields, where)


def complaints_of(error: ValidationError, known: Iterable[str], where: Where) -> list[str]:
    """Return pydantic's complaints in the words of recipes."""
    names = sorted(known)
    listed = ", ".join(names) or "none"
    complaints = []
    for problem in error.errors(include_url=False):
        key = ".".join(str(part) for part in problem["loc"])
        match problem["type"]:
            case "extra_forbidden":
                text = f"no setting is called '{key}'.{suggest(key, names)} Settings: {listed}."
            case "missing":
                text = f"'{key}' is missing and has no default; set it"
            case _:
                text = f"'{key}' is {_shown(problem['input'])}: {_lower(problem['msg'])}"
        place = where if isinstance(where, str) else where(str(problem["loc"][0]))
        complaints.append(f"{place}: {text}")
    return complaints


def _hints(cls: type[Any]) -> dict[str, Any]:
    hints = get_type_hints(cls.__init__, include_extras=True)
    hints.pop("return", None)
    return hints


def _shown(value: object) -> str:
    text = json.dumps(value, default=str)
    longest = 60
    return text if len(text) <= longest else text[: longest - 3] + "..."


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
