"""Settings: a recipe's table against the keyword arguments of the class that it names.

The checking is pydantic's, on a model made from the constructor's signature, in strict JSON mode:
TOML arrays become tuples, but no text becomes a number.
"""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from pydantic.fields import FieldInfo

from detloom.errors import suggest
from detloom.kinds import Kind
from detloom.workshop import contracts

__all__ = [
    "InitialWeights",
    "Where",
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

WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    tuple: "an array",
    list: "an array",
    Sequence: "an array",
    dict: "a table",
    Mapping: "a table",
}


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


def validated(
    model: type[BaseModel], table: Mapping[str, Any], where: Where, others: Sequence[str] = ()
) -> tuple[BaseModel | None, list[str]]:
    """Return the settings of a table, or nothing and every complaint about it.

    Args:
        model: What the table must fit.
        table: Plain data, as TOML gives it.
        where: File and table, put before each complaint.
        others: Settings that the table may have, but the model has not; named and suggested with its own.
    """
    try:
        return model.model_validate_json(json.dumps(table, default=_plain), strict=True), []
    except ValidationError as error:
        return None, _complaints(error, table, model.model_fields, where, others)


def _complaints(
    error: ValidationError,
    table: Mapping[str, Any],
    fields: Mapping[str, FieldInfo],
    where: Where,
    others: Sequence[str],
) -> list[str]:
    """Return pydantic's complaints in the words of recipes, one for a setting that has several forms."""
    names = sorted({*fields, *others})
    complaints: dict[str, None] = {}
    for problem in error.errors(include_url=False):
        first, *rest = (str(part) for part in problem["loc"])
        key = ".".join((first, *rest))
        accepted = _forms(fields[first]) if first in fields else ()
        match problem["type"]:
            case "extra_forbidden":
                text = f"no setting is called '{key}'.{suggest(key, names)} Settings: {', '.join(names) or 'none'}."
            case _ if len(accepted) > 1 and first in table:
                # pydantic has a complaint for each form, and names of its own for them.
                text = f"'{first}' is {_shown(table[first])}: it must be {', or '.join(accepted)}"
            case "missing":
                text = f"'{key}' is missing and has no default; set it"
            case "literal_error" if rest and rest[-1] == "[key]":
                wrong, known = rest[-2], _literals(fields[first].annotation)
                text = f"'{first}' has no '{wrong}'.{suggest(wrong, known)} Known: {', '.join(known)}."
            case _:
                text = f"'{key}' is {_shown(problem['input'])}: {_lower(problem['msg'])}"
        place = where if isinstance(where, str) else where(first)
        complaints[f"{place}: {text}"] = None
    return list(complaints)


def _forms(field: FieldInfo) -> tuple[str, ...]:
    """Return what each form of a setting is, in words."""
    hint = field.annotation
    choices = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return tuple(_in_words(each) for each in choices if each is not NoneType)


def _in_words(hint: Any) -> str:
    if get_origin(hint) is Annotated:
        inner, *constraints = get_args(hint)
        parts = [part for each in constraints for part in getattr(each, "metadata", [each])]
        limits = [f"at least {part.ge}" for part in parts if hasattr(part, "ge")]
        limits += [f"at most {part.le}" for part in parts if hasattr(part, "le")]
        return f"{_in_words(inner)} of {' and '.join(limits)}" if limits else _in_words(inner)
    if get_origin(hint) is Literal:
        return " or ".join(repr(each) for each in get_args(hint))
    members = get_args(hint)
    if get_origin(hint) is tuple and Ellipsis not in members:
        return f"an array of {len(members)}, each {_in_words(members[0])}"
    return WORDS.get(get_origin(hint) or hint, getattr(hint, "__name__", str(hint)))


def _literals(hint: Any) -> list[str]:
    """Return the keys that a table of settings may have."""
    return [str(each) for each in get_args(get_args(hint)[0])]


def _hints(cls: type[Any]) -> dict[str, Any]:
    hints = get_type_hints(cls.__init__, include_extras=True)
    hints.pop("return", None)
    return hints


def _plain(value: object) -> object:
    # Numbers and arrays of numpy and torch are as good as Python's own.
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _shown(value: object) -> str:
    text = json.dumps(value, default=str)
    longest = 60
    return text if len(text) <= longest else text[: longest - 3] + "..."


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
