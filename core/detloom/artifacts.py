"""Artifacts: weights, recipe and class names in one safetensors file.

The metadata holds ``format`` (this layout's number), ``recipe`` (TOML, resolved), ``recipe_name``,
``names`` (JSON array), ``components`` (JSON: the distribution and version that each came from),
``extra`` (JSON object, for the reader's information) and, in an artifact of a deployed form, ``folded``
(JSON array: the reparam passes that made it, in order). Of a plugin that is a file, ``recipe`` has the name and
``components`` the digest. Nothing in an artifact is executed, and no file that it names is.
"""

import codecs
import importlib.metadata
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from detloom.assembly import assemble, build
from detloom.building import components_of, without_initial_weights
from detloom.catalogue import RECIPE
from detloom.detector import Detector
from detloom.durable import not_finite, read_tensors, write_tensors
from detloom.errors import ArtifactError, PluginError, RecipeError
from detloom.kinds import Kind
from detloom.plugin_source import FILE, short_name
from detloom.recipe import USE, Recipe, plugin_hint
from detloom.reparam import fold
from detloom.workshop import DISABLE_VARIABLE, NO_DISTRIBUTION, Workshop, workshop

__all__ = ["Artifact", "Transfer", "load_artifact", "read_artifact", "save_artifact", "transfer_"]

FORMAT = "1"
SHOWN = 5
# How many bytes tell text from other files.
TEXT = 256
DISTRIBUTION = re.compile(r"[A-Za-z0-9][\w.-]* [0-9][\w.!+]*")


@dataclass(frozen=True, slots=True, eq=False)
class Artifact:
    """What an artifact holds, before a detector is made of it.

    Attributes:
        path: Where it was read.
        tensors: Weights by name.
        recipe: What they are the weights of.
        names: Class names by index.
        components: Name and version of the distribution of each ``kind.name``, or name and digest of the file.
        extra: What its writer noted: epoch, metrics.
        folded: Passes that were applied to the model, as a recipe lists them; empty for a training form.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    recipe: Recipe
    names: tuple[str, ...]
    components: Mapping[str, str]
    extra: Mapping[str, Any]
    folded: tuple[str | Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Transfer:
    """What became of the tensors of an artifact in another model.

    Attributes:
        taken: Names that were copied.
        missing: Names of the model that the artifact does not have; they keep their values.
        reshaped: Names that both have, in different shapes; they keep their values.
        unused: Names that the model does not have.
    """

    taken: tuple[str, ...]
    missing: tuple[str, ...]
    reshaped: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        """Say it in a sentence or two."""
        said = [f"{len(self.taken)} tensors taken"]
        for what, names in (("new", self.missing), ("of another shape", self.reshaped), ("not used", self.unused)):
            if names:
                said.append(f"{len(names)} {what} ({_some(names)})")
        return ", ".join(said)


def save_artifact(
    path: Path | str,
    detector: nn.Module,
    *,
    recipe: Recipe,
    names: Sequence[str],
    extra: Mapping[str, Any] | None = None,
    folded: Sequence[str | Mapping[str, Any]] = (),
    shop: Workshop | None = None,
) -> None:
    """Write weights, recipe and names; the file is whole or as it was.

    Args:
        path: Where to.
        detector: Whose weights.
        recipe: What the detector was assembled from.
        names: Class names by index.
        extra: More, as JSON data.
        folded: Passes that the detector went through, in order, as a recipe lists them.
        shop: Where the components came from; the environment's workshop when not given.

    Raises:
        ArtifactError: The file cannot be written.
    """
    shop = shop or workshop()
    metadata = {
        "format": FORMAT,
        "recipe": _without_folders(without_initial_weights(recipe, shop)).to_toml(),
        "recipe_name": recipe.name,
        "names": json.dumps(list(names)),
        "components": json.dumps(_components(recipe, shop), sort_keys=True),
        "extra": json.dumps(dict(extra or {}), sort_keys=True),
        "versions": json.dumps({"detloom": importlib.metadata.version("detloom"), "torch": str(torch.__version__)}),
    }
    if folded:
        metadata["folded"] = json.dumps([each if isinstance(each, str) else dict(each) for each in folded])
    write_tensors(Path(path), detector.state_dict(), metadata)


def read_artifact(path: Path | str) -> Artifact:
    """Return what an artifact holds.

    Raises:
        ArtifactError: There is none, or it is broken, or of another kind, or holds infinite numbers or NaN.
    """
    path = Path(path)
    if path.is_dir():
        best = path / "best.safetensors"
        hint = f"Did you mean {best}?" if best.exists() else "Give a file that ends in .safetensors."
        raise ArtifactError(f"{path}: this is a folder, and an artifact is a file. {hint}")
    if not path.exists() and str(path) in workshop().names(RECIPE):
        raise ArtifactError(
            f"{path}: this is a recipe, and an artifact with trained weights is needed, "
            "such as the best.safetensors of a run; `detloom train` makes one"
        )
    tensors, metadata = _read_whole(path)
    if "recipe" not in metadata or "names" not in metadata:
        raise ArtifactError(
            f"{path}: this safetensors file carries no recipe, so it is no artifact of detloom; "
            "`best.safetensors` and `last.safetensors` of a run are"
        )
    if metadata.get("format") != FORMAT:
        raise ArtifactError(
            f"{path}: the artifact has format {metadata.get('format')!r}, this detloom reads {FORMAT!r}; update detloom"
        )
    try:
        names = json.loads(metadata["names"])
        components = json.loads(metadata.get("components", "{}"))
        extra = json.loads(metadata.get("extra", "{}"))
        folded = json.loads(metadata.get("folded", "[]"))
        recipe = Recipe.from_toml(metadata["recipe"], str(path), name=metadata.get("recipe_name", path.stem))
    except (json.JSONDecodeError, RecipeError, RecursionError) as error:
        raise ArtifactError(f"{path}: the artifact's metadata cannot be read: {error}") from error
    if not _is_texts(names) or not names:
        raise ArtifactError(f"{path}: the artifact's class names must be an array of text, found {str(names)[:60]}")
    if not isinstance(components, dict) or not isinstance(extra, dict) or not _is_texts(list(components.values())):
        raise ArtifactError(f"{path}: the artifact's metadata is damaged: components and extra must be tables")
    if not isinstance(folded, list) or not all(isinstance(each, str) or _names_a_pass(each) for each in folded):
        raise ArtifactError(f"{path}: the artifact's metadata is damaged: folded must be an array of passes")
    if broken := not_finite(tensors):
        raise ArtifactError(
            f"{path}: {_some(broken)} hold infinite numbers or NaN, and weights must be finite; take an earlier "
            "artifact of the same run, or train again with a lower [train] learning_rate"
        )
    return Artifact(path, tensors, recipe, tuple(names), components, extra, tuple(folded))


def _read_whole(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors and metadata, and say of a file that has none what it is, or where there may be another."""
    try:
        return read_tensors(path)
    except ArtifactError as error:
        if isinstance(error.__cause__, OSError):
            raise
        wanted = "an artifact with trained weights is needed, such as RUN/best.safetensors, which `detloom train` makes"
        if path.suffix == ".toml":
            raise ArtifactError(f"{path}: this is a recipe, and {wanted}") from error
        if _is_text(path):
            raise ArtifactError(f"{path}: this is a text file, perhaps a recipe, and {wanted}") from error
        other = "best.safetensors" if path.name == "last.safetensors" else "last.safetensors"
        raise ArtifactError(
            f"{error}\n  If it was cut short, take another copy of it, or the {other} of the run that it is of."
        ) from error


def _is_text(path: Path) -> bool:
    """Return whether a file begins as text; that of safetensors begins with a length, which has zeros."""
    with path.open("rb") as file:
        start = file.read(TEXT)
    try:
        # Piecewise, for the last letter may be half there.
        letters = codecs.getincrementaldecoder("utf-8")().decode(start)
    except UnicodeDecodeError:
        return False
    return bool(letters) and all(each.isprintable() or each.isspace() for each in letters)


def load_artifact(path: Path | str, *, plugins: Sequence[str | Path] = (), shop: Workshop | None = None) -> Detector:
    """Return the detector of an artifact, in eval mode, on the CPU; a deployed form as such.

    Args:
        path: The artifact.
        plugins: Files of plugins that are run. Those that the artifact names are not, unless they are given here.
        shop: Where components are looked up; the environment's workshop when not given.

    Raises:
        ArtifactError: It cannot be read, its components are not installed, or its weights do not fit them.
        PluginError: The file of a plugin cannot be used.
    """
    artifact = read_artifact(path)
    shop = shop or workshop()
    for each in plugins:
        shop.load_file(each)
    try:
        detector = assemble(artifact.recipe, names=artifact.names, shop=shop)
        if artifact.folded:
            # The passes give the form, to which the weights in the file belong.
            passes = [build(Kind.REPARAM, _pass_table(each), shop=shop) for each in artifact.folded]
            detector = fold(detector, passes)[0]
            detector.passes = ()
    except (RecipeError, PluginError) as error:
        raise ArtifactError(
            f"{artifact.path}: the detector of this artifact cannot be assembled here: "
            + (_missing(artifact, shop) or f"\n{error}\n  {_made_with(artifact)}")
        ) from error
    if changed := _changed_files(artifact, shop):
        warnings.warn(f"{artifact.path}: {changed}", stacklevel=2)
    fit = _fit(detector.state_dict(), artifact.tensors)
    if fit.missing or fit.reshaped or fit.unused:
        raise ArtifactError(
            f"{artifact.path}: the weights do not fit the recipe they come with: {fit}\n"
            f"  Was it written by another version of a plugin? {_made_with(artifact)}"
        )
    detector.load_state_dict(dict(artifact.tensors))
    return detector.eval()


def transfer_(model: nn.Module, artifact: Artifact) -> Transfer:
    """Copy every tensor of equal name and shape into a model, as a start for fine-tuning.

    Raises:
        ArtifactError: No tensor fits.
    """
    own = model.state_dict()
    fit = _fit(own, artifact.tensors)
    if not fit.taken:
        raise ArtifactError(
            f"{artifact.path}: not one tensor fits the model; the artifact holds a '{artifact.recipe.name}', "
            "which is another architecture"
        )
    model.load_state_dict({name: artifact.tensors[name] for name in fit.taken}, strict=False)
    return fit


def _fit(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> Transfer:
    both = [name for name in own if name in given]
    return Transfer(
        taken=tuple(name for name in both if own[name].shape == given[name].shape),
        missing=tuple(name for name in own if name not in given),
        reshaped=tuple(name for name in both if own[name].shape != given[name].shape),
        unused=tuple(name for name in given if name not in own),
    )


def _components(recipe: Recipe, shop: Workshop) -> dict[str, str]:
    found = {f"{kind}.{name}": shop.provider(kind, name) for kind, name in components_of(recipe, shop)}
    for entry in recipe.tables.get(Kind.REPARAM, {}).get("passes", ()):
        name = entry if isinstance(entry, str) else entry["use"]
        found[f"{Kind.REPARAM}.{name}"] = shop.provider(Kind.REPARAM, name)
    return found


def _without_folders(recipe: Recipe) -> Recipe:
    # Where the files lay is of no use elsewhere, and nobody's business.
    return replace(recipe, plugins=tuple(map(short_name, recipe.plugins)))


def _changed_files(artifact: Artifact, shop: Workshop) -> str:
    """Return which files of plugins are others than those that the artifact was made with."""
    made_with = {where for where in artifact.components.values() if where.startswith(FILE)}
    given = {file.name: str(file) for file in shop.files()}
    named = {where.removeprefix(FILE).partition(",")[0]: where for where in made_with}
    changed = [name for name, where in named.items() if given.get(name, where) != where]
    if not changed:
        return ""
    return (
        f"{', '.join(changed)} is not the file that the artifact was made with, so what it finds may differ:\n"
        + "\n".join(f"    made with {named[name]}\n    given     {given[name]}" for name in changed)
    )


def _missing(artifact: Artifact, shop: Workshop) -> str:
    """Return which components are not here, where they came from, what to install, and which plugins are left out."""
    lines, wanted = ["it has components that are not here"], set()
    for key, distribution in sorted(artifact.components.items()):
        kind, _, name = key.partition(".")
        if kind in tuple(Kind) and shop.complaint(kind, name) is not None:
            lines.append(f"  the {kind} '{name}', which came with {distribution}")
            wanted.add(distribution)
    if not wanted:
        return ""
    off = [plugin for plugin in shop.plugins() if plugin.is_disabled]
    if idle := [plugin.name for plugin in off if plugin.distribution in wanted]:
        lines.append(f"  It is installed: take {', '.join(idle)} out of {DISABLE_VARIABLE}")
    # An artifact may say anything; what does not look like a distribution is not to be pasted into a shell.
    lacking = wanted.difference(plugin.distribution for plugin in off)
    pinned = sorted(each.replace(" ", "==") for each in lacking if DISTRIBUTION.fullmatch(each))
    if pinned:
        lines.append(f"  Install: pip install {' '.join(pinned)}")
    lines += [f"  {line}" for hint in plugin_hint(artifact.recipe, shop) for line in hint.split("\n")]
    if NO_DISTRIBUTION in wanted:
        lines.append("  What came with no distribution is code of its author's own; ask where it is.")
    lines += [f"  {plugin.fault}" for plugin in shop.plugins() if plugin.fault]
    lines += [f"  switched off by {DISABLE_VARIABLE}: {', '.join(plugin.name for plugin in off)}"] if off else []
    return "\n".join(lines)


def _made_with(artifact: Artifact) -> str:
    return f"It was made with: {', '.join(sorted(set(artifact.components.values())))}"


def _pass_table(entry: str | Mapping[str, Any]) -> Mapping[str, Any]:
    return {USE: entry} if isinstance(entry, str) else entry


def _names_a_pass(entry: object) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get(USE), str)


def _is_texts(values: object) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
