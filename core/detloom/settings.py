"""Settings: a recipe's table against the keyword arguments of the class that it names.

The checking is pydantic's, on a model made from the constructor's signature, in strict JSON mode:
TOML arrays become tuples, but no text becomes a number.
"""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from pydantic.fields import FieldInfo

from detloom.errors import suggest
from detloom.kinds import Kind
from detloom.wording import field_hint, in_words, members_hint, shown, without_article
from detloom.workshop import contracts

__all__ = [
    "InitialWeights",
    "Where",
    "initial_weights",
    "nested_components",
    "setting_types",
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
    return create_model(
        cls.__name__, __config__=ConfigDict(extra="forbid", protected_namespaces=(), allow_inf_nan=False), **fields
    )


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


def setting_types(cls: type[Any]) -> dict[str, str]:
    """Return the type of each setting of a component, in the words of recipes."""
    kinds = {contract: kind for kind, contract in contracts().items()}
    hints = _hints(cls)
    return {
        name: without_article(in_words(hints.get(name, Any), kinds))
        for name, parameter in inspect.signature(cls).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    }


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
    text = json.dumps(table, default=_plain)
    try:
        return model.model_validate_json(text, strict=True), []
    except ValidationError as error:
        return None, _complaints(error, json.loads(text), model.model_fields, where, others)


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
        match problem["type"]:
            case "extra_forbidden":
                key = ".".join((first, *rest))
                text = f"no setting is called '{key}'.{suggest(key, names)} Settings: {', '.join(names) or 'none'}."
            case "literal_error" if rest and rest[-1] == "[key]":
                wrong, known = rest[-2], _literals(fields[first].annotation)
                text = f"'{first}' has no '{wrong}'.{suggest(wrong, known)} Known: {', '.join(known)}."
            case kind:
                text = _misfit(kind, problem["loc"], table, fields)
        place = where if isinstance(where, str) else where(first)
        complaints[f"{place}: {text}"] = None
    return list(complaints)


def _misfit(kind: str, place: tuple[str | int, ...], table: Mapping[str, Any], fields: Mapping[str, FieldInfo]) -> str:
    """Return what a value must be, or that it is missing.

    Args:
        kind: What pydantic calls the mistake.
        place: Keys and positions that lead to it; where there are several forms, pydantic's names of them follow.
        table: The settings.
        fields: What they must fit.
    """
    first, *rest = place
    path, hint, value = [str(first)], field_hint(fields[str(first)]), table.get(str(first))
    is_missing = first not in table
    for key in rest:
        inner = members_hint(hint, key)
        # An array that is too short is wrong as a whole.
        if inner is None or not (isinstance(value, Mapping) or (isinstance(value, list) and _has(value, key))):
            break
        path.append(str(key))
        hint, is_missing = inner, not _has(value, key)
        value = None if is_missing else value[key]  # type: ignore[index] # the key fits, as was just asked
    name = ".".join(path)
    if is_missing:
        return f"'{name}' is missing and has no default; set it"
    finite = ", and finite" if kind == "finite_number" else ""
    return f"'{name}' is {shown(value)}: it must be {in_words(hint)}{finite}"


def _has(value: Mapping[str, Any] | list[Any], key: str | int) -> bool:
    if isinstance(value, list):
        return isinstance(key, int) and key < len(value)
    return key in value


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
