"""Types in the words of those who write recipes: ``a whole number of at least 1``, ``an array of text``."""

import json
from collections.abc import Mapping, Sequence
from enum import Enum
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from detloom.errors import with_article
from detloom.kinds import Kind

__all__ = ["choices", "field_hint", "in_words", "members_hint", "shown", "without_article"]

# Of one, and of several in an array.
WORDS: dict[Any, tuple[str, str]] = {
    bool: ("true or false", "true or false"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("text", "text"),
    tuple: ("an array", "arrays"),
    list: ("an array", "arrays"),
    Sequence: ("an array", "arrays"),
    dict: ("a table", "tables"),
    Mapping: ("a table", "tables"),
    Any: ("anything", "anything"),
}

LONGEST = 60

LIMITS = (("ge", "at least"), ("gt", "more than"), ("le", "at most"), ("lt", "less than"))


def in_words(hint: Any, kinds: Mapping[Any, Kind] | None = None) -> str:
    """Return what a setting of a type must be.

    Args:
        hint: The type, as a signature has it.
        kinds: The kind of each contract; one that is not here goes by its class's name.
    """
    return ", or ".join(dict.fromkeys(_words(each, kinds or {}, plural=False) for each in choices(hint)))


def choices(hint: Any) -> tuple[Any, ...]:
    """Return the forms of a setting; that it may be left out is none."""
    forms = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return tuple(each for each in forms if each is not NoneType)


def field_hint(field: FieldInfo) -> Any:
    """Return the type of a pydantic field, with its limits."""
    return Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation


def members_hint(hint: Any, key: str | int) -> Any | None:
    """Return the type of what an array or a table of one form has at a place, if it is known."""
    forms = choices(hint)
    if len(forms) != 1:
        return None
    bare = _bare(forms[0])
    origin, members = get_origin(bare), get_args(bare)
    if isinstance(bare, type) and issubclass(bare, BaseModel):
        return field_hint(bare.model_fields[key]) if key in bare.model_fields else None
    if isinstance(key, int) and origin is tuple and Ellipsis not in members:
        return members[key] if key < len(members) else None
    if isinstance(key, int) and origin in (tuple, list, Sequence):
        return members[0]
    return members[1] if origin in (dict, Mapping) else None


def without_article(text: str) -> str:
    """Return ``"whole number"`` for ``"a whole number"``, in each form that is named."""
    return ", or ".join(form.removeprefix("an ").removeprefix("a ") for form in text.split(", or "))


def shown(value: object) -> str:
    """Return a value as a recipe writes it: ``true``, ``"atss"``, ``[640, 640]``; a long one is cut."""
    text = _quoted(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def _words(hint: Any, kinds: Mapping[Any, Kind], *, plural: bool) -> str:
    bare = _bare(hint)
    origin, members = get_origin(bare), get_args(bare)
    if named := _values(bare):
        return _listed(named)
    if len(choices(bare)) > 1:
        return " or ".join(_words(each, kinds, plural=plural) for each in choices(bare))
    if bare in kinds:
        return f"{WORDS[dict][plural]} with `use`, which names {with_article(kinds[bare])}"
    if isinstance(bare, type) and issubclass(bare, BaseModel):
        return WORDS[dict][plural] + (" with `use`" if "use" in bare.model_fields else "")
    known = WORDS.get(origin or bare)
    limits = " and ".join(_limits(hint))
    if known is None:
        return str(getattr(bare, "__name__", bare))
    return known[plural] + _contents(origin, members, kinds) + (f" of {limits}" if limits else "")


def _contents(origin: Any, members: tuple[Any, ...], kinds: Mapping[Any, Kind]) -> str:
    """Return what an array or a table holds."""
    if not members:
        return ""
    if origin is tuple and Ellipsis not in members:
        each = list(dict.fromkeys(_words(member, kinds, plural=False) for member in members))
        return f" of {len(members)}, each {each[0]}" if len(each) == 1 else f" of {len(members)}: {', '.join(each)}"
    content = members[1] if origin in (dict, Mapping) else members[0]
    return "" if content is Any else f" of {_words(content, kinds, plural=True)}"


def _bare(hint: Any) -> Any:
    return _bare(get_args(hint)[0]) if get_origin(hint) is Annotated else hint


def _limits(hint: Any) -> list[str]:
    if get_origin(hint) is not Annotated:
        return []
    inner, *constraints = get_args(hint)
    parts = [part for each in constraints for part in getattr(each, "metadata", [each])]
    found = [
        f"{words} {_short(getattr(part, name))}" for name, words in LIMITS for part in parts if hasattr(part, name)
    ]
    return [*_limits(inner), *found]


def _short(number: float) -> float:
    return int(number) if number == int(number) else number


def _values(bare: Any) -> list[str]:
    """Return the values of a type that has but these, as they are written."""
    if get_origin(bare) is Literal:
        return [_quoted(each) for each in get_args(bare)]
    return [_quoted(each.value) for each in bare] if isinstance(bare, type) and issubclass(bare, Enum) else []


def _quoted(value: object) -> str:
    return json.dumps(value, default=str)


def _listed(values: Sequence[str]) -> str:
    return " or ".join((", ".join(values[:-1]), values[-1])) if len(values) > 1 else values[0]
