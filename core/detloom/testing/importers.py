"""Checks of importers, on the author's example: a small checkpoint, and the recipe that it holds the weights of.

What a file holds beside tensors is a stranger's. So the example is also given damaged, which an importer bears or
refuses as an ``ArtifactError``.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detloom.assembly import assemble
from detloom.detector import Detector
from detloom.errors import ArtifactError, DetloomError
from detloom.foreign import ForeignCheckpoint, ForeignModule
from detloom.interfaces import Importer
from detloom.recipe import Recipe, load_recipe
from detloom.testing.construction import Build, check_signature, demand

__all__ = ["CHECKS", "WITH_EXAMPLE"]

WANTED = (
    "give example=..., a function that returns a detloom.foreign.ForeignCheckpoint of this form, and the recipe (a "
    "name, a path or a Recipe, with its number of classes) of whose network it holds the weights"
)
# What a stranger's file may have in the place of anything.
JUNK: tuple[Any, ...] = (None, 7, "x", [[]], {})
# Tensors that are damaged, one after the other; of a large file not all.
MOST_DAMAGED = 40
SHOWN = 3


def settings_are_keyword_only_and_typed(build: Build) -> None:
    """An importer is built with its defaults: nobody says in advance which file there will be."""
    check_signature(build, ())


def other_tensors_are_not_recognised(build: Build) -> None:
    """A file that two importers claim is refused, so none may claim what is not its own."""
    tensors = {"features.0.weight": torch.zeros(4, 3, 3, 3), "classifier.bias": torch.zeros(10)}
    checkpoint = ForeignCheckpoint(Path("other.pt"), "", tensors, {"": ForeignModule("torchvision.AlexNet", {})})
    says = _importer(build).recognises(checkpoint)
    demand(says is False, f"recognises() of a file with {', '.join(tensors)} is {says!r}; return False")


def example_is_recognised(build: Build) -> None:
    """Nobody need say from which project a file is."""
    says = _importer(build).recognises(_example(build).checkpoint)
    demand(says is True, f"recognises() of the example is {says!r}; return True for a file of this form")


def class_names_are_text_or_nothing(build: Build) -> None:
    """One for each class, told apart; None where the file does not say how many there are."""
    names = _importer(build).class_names(_example(build).checkpoint)
    if names is None:
        return
    is_text = isinstance(names, tuple) and all(isinstance(name, str) and name for name in names)
    demand(is_text and names, f"class_names() returned {names!r}; return a tuple of text, or None")
    demand(len(set(names)) == len(names), f"class_names() has a name twice: {names!r}")


def overrides_are_settings_of_the_recipe(build: Build) -> None:
    """What the file says otherwise is set in the recipe, and told to the user, by dotted key."""
    example = _example(build)
    found = _importer(build).overrides(example.checkpoint, example.recipe)
    demand(isinstance(found, dict), f"overrides() returned a {type(found).__name__}; return a dict by dotted key")
    demand(
        all(isinstance(key, str) and "." in key for key in found),
        f'overrides() has the keys {list(found)[:SHOWN]}; name each setting by its section, as "head.implicit"',
    )
    try:
        _detector(build, example)
    except DetloomError as error:
        raise AssertionError(f"the recipe with what overrides() returned, {found}, is refused: {error}") from error


def every_tensor_has_its_place(build: Build) -> None:
    """Each tensor of the file is used once, or has become a setting, and the network lacks none."""
    example = _example(build)
    try:
        detector = _detector(build, example)
    except DetloomError:
        # Overrides that cannot be used have a check of their own.
        return
    own = detector.state_dict()
    mapping = _importer(build).mapping(example.checkpoint, detector)
    filled = [mine for mine in mapping.values() if mine is not None]
    tensors = example.checkpoint.tensors
    left, missing = [name for name in tensors if name not in mapping], [name for name in own if name not in filled]
    demand(not left, f"mapping() leaves out {left[:SHOWN]} of the file; name our tensor, or None for a setting")
    demand(not missing, f"mapping() fills no {missing[:SHOWN]} of the recipe's network")
    unknown = [name for name in filled if name not in own]
    demand(not unknown, f"mapping() names {unknown[:SHOWN]}, which the recipe's network does not have")
    twice = sorted({name for name in filled if filled.count(name) > 1})
    demand(not twice, f"mapping() fills {twice[:SHOWN]} twice; each tensor has one source")
    for theirs, mine in mapping.items():
        if mine is not None and theirs in tensors:
            shapes = [_squeezed(tensors[theirs]), _squeezed(own[mine])]
            demand(shapes[0] == shapes[1], f"mapping() puts {theirs} {shapes[0]} into {mine} {shapes[1]}")


def damaged_files_are_borne_or_refused(build: Build) -> None:
    """A stranger's file may be anything; what cannot be used is an ``ArtifactError``, and no traceback."""
    example, importer = _example(build), _importer(build)
    try:
        detector = _detector(build, example)
    except DetloomError:
        return
    for what, checkpoint in _damaged(example.checkpoint):
        step = "recognises"
        try:
            if not importer.recognises(checkpoint):
                continue
            step = "class_names"
            importer.class_names(checkpoint)
            step = "overrides"
            importer.overrides(checkpoint, example.recipe)
            step = "mapping"
            importer.mapping(checkpoint, detector)
        except ArtifactError:
            continue
        except Exception as error:
            raise AssertionError(
                f"{step}() of the example with {what} raises {type(error).__name__}: {error}; believe nothing of a "
                "file, and raise an ArtifactError that says what is wrong with it"
            ) from error


def file_is_left_alone(build: Build) -> None:
    """Several recipes are tried on what was read once."""
    example, importer = _example(build), _importer(build)
    before = {name: tensor.clone() for name, tensor in example.checkpoint.tensors.items()}
    _answers(importer, build, example)
    after = example.checkpoint.tensors
    demand(list(after) == list(before), "the names of the checkpoint's tensors changed; work on a copy")
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    demand(not changed, f"the checkpoint's {changed[:SHOWN]} changed; return names, and leave tensors to the core")


def same_file_gives_the_same(build: Build) -> None:
    """Nothing is remembered of the file before."""
    example = _example(build)
    importer = _importer(build)
    first, again = _answers(importer, build, example), _answers(importer, build, example)
    changed = [name for name in first if first[name] != again[name]]
    demand(not changed, f"{', '.join(changed)}() of one file had two answers; keep no state")


CHECKS: tuple[Callable[[Build], None], ...] = (
    settings_are_keyword_only_and_typed,
    other_tensors_are_not_recognised,
    example_is_recognised,
    class_names_are_text_or_nothing,
    overrides_are_settings_of_the_recipe,
    every_tensor_has_its_place,
    damaged_files_are_borne_or_refused,
    file_is_left_alone,
    same_file_gives_the_same,
)

WITH_EXAMPLE = CHECKS[2:]
"""Those that work on the author's example."""


@dataclass(frozen=True, slots=True, eq=False)
class _Example:
    checkpoint: ForeignCheckpoint
    recipe: Recipe


def _importer(build: Build) -> Importer:
    importer: Importer = build()
    return importer


def _example(build: Build) -> _Example:
    demand(build.example, f"there is no example to import; {WANTED}")
    made: Any = build.example() if build.example else None
    is_pair = isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], ForeignCheckpoint)
    demand(is_pair, f"the example is a {type(made).__name__}; {WANTED}")
    # An importer that spoils what it is given must not hide it from the check after.
    own = replace(made[0], tensors={name: tensor.clone() for name, tensor in made[0].tensors.items()})
    return _Example(own, load_recipe(made[1]))


def _detector(build: Build, example: _Example) -> Detector:
    """Return the network of the recipe as the file changes it, on the meta device."""
    importer = _importer(build)
    recipe = load_recipe(example.recipe, importer.overrides(example.checkpoint, example.recipe))
    names = importer.class_names(example.checkpoint)
    with torch.device("meta"):
        return assemble(recipe, num_classes=None if names is None else len(names))


def _answers(importer: Importer, build: Build, example: _Example) -> Mapping[str, Any]:
    """Return what each method says of the example."""
    checkpoint = example.checkpoint
    found = {
        "recognises": importer.recognises(checkpoint),
        "class_names": importer.class_names(checkpoint),
        "overrides": importer.overrides(checkpoint, example.recipe),
    }
    try:
        detector = _detector(build, example)
    except DetloomError:
        return found
    return {**found, "mapping": importer.mapping(checkpoint, detector)}


def _damaged(checkpoint: ForeignCheckpoint) -> Iterator[tuple[str, ForeignCheckpoint]]:
    """Yield the example as a damaged or hostile file has it, and in words how."""
    tensors = checkpoint.tensors
    for name in list(tensors)[:: max(1, len(tensors) // MOST_DAMAGED)]:
        yield f"no {name}", replace(checkpoint, tensors={key: each for key, each in tensors.items() if key != name})
        flat = {key: each.flatten()[:1] if key == name else each for key, each in tensors.items()}
        yield f"one number for {name}", replace(checkpoint, tensors=flat)
    for path, module in checkpoint.modules.items():
        for attribute in module.attributes:
            for junk in JUNK:
                changed = replace(module, attributes={**module.attributes, attribute: junk})
                modules = {**checkpoint.modules, path: changed}
                yield f"{junk!r} for {attribute} of '{path}'", replace(checkpoint, modules=modules)
        empty = {**checkpoint.modules, path: ForeignModule("", {})}
        yield f"nothing of a module '{path}'", replace(checkpoint, modules=empty)


def _squeezed(tensor: Tensor) -> list[int]:
    # A constant for each channel is stored with or without axes of length one.
    return [size for size in tensor.shape if size != 1]
