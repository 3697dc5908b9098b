"""Whether two modules are the same structure: of one class, with parameters of one shape and one configuration.

Values of parameters do not count, as they are learned; those of buffers and of plain attributes do, as a module may
compute with them. What is a number here stands for a structure: equal numbers, equal structures.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Hashable, Mapping
from enum import Enum

import torch
from torch import Tensor, nn

__all__ = ["Structures"]

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_DEEPEST = 12


class Structures:
    """Numbers of structures, the same for the same structure.

    Args:
        settings: Names of attributes that do not count in a module with children: a component may keep its settings
            as they were given, beside the parts that it made of them.
    """

    def __init__(self, settings: Collection[str] = ()) -> None:
        self._settings = frozenset(settings)
        self._numbers: dict[Hashable, int] = {}

    def of(self, root: nn.Module) -> tuple[dict[str, int], dict[str, int]]:
        """Return by path the numbers of each module alone, and of each with all that is in it.

        A module that stands in several places is, in all but the first, that place's once more.
        """
        own: dict[str, int] = {}
        whole: dict[str, int] = {}
        self._walk(root, "", {}, own, whole)
        return own, whole

    def _walk(
        self,
        module: nn.Module,
        path: str,
        first: dict[int, str],
        own: dict[str, int],
        whole: dict[str, int],
    ) -> int:
        known = first.setdefault(id(module), path)
        own[path] = self._number(("again", known) if known != path else self._alone(module))
        inner = tuple(
            0 if child is None else self._walk(child, f"{path}.{name}".lstrip("."), first, own, whole)
            for name, child in module._modules.items()  # noqa: SLF001 - the public way leaves out what stands there twice
        )
        whole[path] = self._number((own[path], inner))
        return whole[path]

    def _number(self, structure: Hashable) -> int:
        return self._numbers.setdefault(structure, len(self._numbers) + 1)

    def _alone(self, module: nn.Module) -> Hashable:
        ignored = _OF_EVERY_MODULE | (self._settings if any(module.children()) else frozenset())
        return (
            type(module),
            tuple((name, tuple(each.shape), each.dtype) for name, each in module.named_parameters(recurse=False)),
            tuple((name, _frozen(each)) for name, each in module.named_buffers(recurse=False)),
            tuple((name, _frozen(each)) for name, each in vars(module).items() if name not in ignored),
            tuple((name, child is None) for name, child in module._modules.items()),  # noqa: SLF001 - the public way leaves out what is None
            module.extra_repr(),
        )


def _frozen(value: object, depth: int = 0) -> Hashable:
    """Return a value's content in a form that can be compared."""
    if depth > _DEEPEST:
        return type(value).__qualname__
    if value is None or isinstance(value, bool | int | float | str | bytes | type | Enum):
        return value
    if isinstance(value, Tensor):
        return _tensor(value)
    into = functools.partial(_frozen, depth=depth + 1)
    return _callable(value, into) if callable(value) else _collected(value, into)


def _collected(value: object, into: Callable[[object], Hashable]) -> Hashable:
    name = type(value).__qualname__
    if isinstance(value, Mapping):
        return name, tuple((into(key), into(each)) for key, each in value.items())
    if isinstance(value, list | tuple):
        return tuple(map(into, value))
    if isinstance(value, set | frozenset):
        return frozenset(map(into, value))
    if dataclasses.is_dataclass(value):
        return name, tuple(into(getattr(value, field.name)) for field in dataclasses.fields(value))
    if hasattr(value, "__dict__"):
        return name, into(vars(value))
    return value if isinstance(value, Hashable) else repr(value)


def _callable(value: object, into: Callable[[object], Hashable]) -> Hashable:
    if isinstance(value, functools.partial):
        return into(value.func), into(value.args), into(value.keywords)
    name = getattr(value, "__qualname__", None)
    if name is not None:
        return getattr(value, "__module__", None), name
    # Of a module that is kept out of sight the class alone is compared.
    return type(value).__qualname__


def _tensor(tensor: Tensor) -> Hashable:
    content = () if tensor.is_meta else tuple(torch.flatten(tensor.detach().cpu()).tolist())
    return tuple(tensor.shape), tensor.dtype, content
