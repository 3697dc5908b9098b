"""Settings: a recipe's table against the keyword arguments of the class that it names.

The checking is pydantic's, on a model made from the constructor's signature, in strict JSON mode:
TOML arrays become tuples, but no text becomes a number.
"""

import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from detloom.errors import suggest

__all__ = ["Where", "complaints_of", "settings_model", "validated"]

Where = str | Callable[[str], str]
"""File and table to name in a complaint, or what tells them for the key concerned."""


def settings_model(cls: type[Any]) -> type[BaseModel]:
    """Return the pydantic model of a component's settings: its keyword-only arguments."""
    hints = get_type_hints(cls.__init__)
    fields: dict[str, Any] = {
        name: (hints.get(name, Any), ... if parameter.default is parameter.empty else parameter.default)
        for name, parameter in inspect.signature(cls).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    return create_model(cls.__name__, __config__=ConfigDict(extra="forbid", protected_namespaces=()), **fields)


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


def _shown(value: object) -> str:
    text = json.dumps(value, default=str)
    longest = 60
    return text if len(text) <= longest else text[: longest - 3] + "..."


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
