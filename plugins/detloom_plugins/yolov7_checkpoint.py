"""The checkpoints of the published YOLOv7 models: settings, names and tensors of the layers that they number.

A layer's tensors are called ``model.<number>.<part>``; which layer of ours has a number, ``yolov7_layers`` says.

Reference: Wang, Bochkovskiy and Liao, YOLOv7 (2022), figure 2 and the published checkpoints.
"""

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from detloom.detector import Detector
from detloom.errors import ArtifactError
from detloom.foreign import ForeignCheckpoint, ForeignModule, listed
from detloom.hookspecs import hookimpl
from detloom.interfaces import Importer
from detloom.kinds import Kind
from detloom.recipe import USE, Recipe
from detloom_plugins.yolov7_layers import PublishedLayer, published_layers

__all__ = ["Yolov7Importer"]

HEAD_KERNEL = re.compile(r"model\.(\d+)\.m\.0\.weight")
ACTIVATIONS = {"SiLU": "silu", "LeakyReLU": "leaky-relu", "ReLU": "relu", "ReLU6": "relu6"}
SLOPE = 0.1
MOST_CLASSES = 100_000
MOST_ANCHORS = 1000
MOST_INPUTS = 20
LONGEST_NAME = 500
LAYER = re.compile(r"model\.(\d{1,6})(\..*)?")
# What torch's modules do that have no tensors, by attribute.
FACTS = {
    "MaxPool2d": ("kernel_size", "stride", "padding", "dilation", "ceil_mode"),
    "Upsample": ("size", "scale_factor", "mode", "align_corners"),
}
# Modules of torch that compute nothing at inference, or that are looked at elsewhere.
ELSEWHERE = frozenset({"activation", "container", "dropout", "linear", "loss", "module"})
TORCH = "torch.nn.modules."


class Yolov7Importer(Importer):
    """Take checkpoints of the published YOLOv7 models: in training or deployed form, averaged or not, of any classes.

    Class names, anchors and the activation come from the file, where it has them. Networks that were fused are not
    taken: their normalisation is gone.
    """

    def recognises(self, checkpoint: ForeignCheckpoint) -> bool:
        """Return whether there is a head among numbered layers."""
        return any(map(HEAD_KERNEL.fullmatch, checkpoint.tensors))

    def class_names(self, checkpoint: ForeignCheckpoint) -> tuple[str, ...]:
        """Return the names that were saved with the network, or numbers.

        Raises:
            ArtifactError: There are more or fewer names than the head has classes.
        """
        count = _num_classes(checkpoint)
        network = checkpoint.modules.get("")
        names = network.attributes.get("names") if network else None
        if isinstance(names, dict):
            names = [names.get(index) for index in range(len(names))]
        if names is None:
            return tuple(str(index) for index in range(count))
        if not isinstance(names, list | tuple) or not all(
            isinstance(name, str) and len(name) <= LONGEST_NAME and name.isprintable() for name in names
        ):
            raise ArtifactError(
                f"{checkpoint.path}: the class names in this file are no printable text of up to {LONGEST_NAME} letters"
            )
        if len(names) != count:
            raise ArtifactError(
                f"{checkpoint.path}: this file has {len(names)} class names for {count} classes; it was put together "
                "from two others"
            )
        return tuple(names)

    def overrides(self, checkpoint: ForeignCheckpoint, recipe: Recipe) -> dict[str, Any]:
        """Return head, anchors, auxiliary levels and activation, as far as the file has them otherwise.

        Raises:
            ArtifactError: The recipe's network is of another family, or the file's activations are unknown.
        """
        uses = [recipe.tables.get(kind, {}).get(USE) for kind in (Kind.BACKBONE, Kind.NECK, Kind.HEAD)]
        if uses != ["elan", "elan-pan", "anchor"]:
            raise ArtifactError(f"{checkpoint.path}: '{recipe.name}' is no network of the YOLOv7 family")
        head = _head(checkpoint)
        found: dict[str, Any] = {"head.implicit": f"{head}.ia.0.implicit" in checkpoint.tensors}
        anchors = _anchors(checkpoint)
        if anchors is not None:
            found["head.anchors"] = [[[_short(side) for side in pair] for pair in level] for level in anchors.tolist()]
        if f"{head}.m2.0.weight" not in checkpoint.tensors:
            found["neck.auxiliary"] = []
        activation = _activation(checkpoint)
        if activation is not None:
            found |= {"backbone.activation": activation, "neck.activation": activation}
        absent: dict[str, Any] = {"head.implicit": True, "neck.auxiliary": []}
        return {key: value for key, value in found.items() if _setting(recipe, key, absent.get(key)) != value}

    def mapping(self, checkpoint: ForeignCheckpoint, detector: Detector) -> dict[str, str | None]:
        """Return our name of each tensor; anchors are settings.

        Raises:
            ArtifactError: The network was fused, or is wired otherwise.
        """
        fused = [name for name in checkpoint.tensors if name.endswith((".conv.bias", ".rbr_reparam.weight"))]
        if fused:
            raise ArtifactError(
                f"{checkpoint.path}: the network in this file was fused, its normalisation is gone ({fused[0]}); "
                "import the checkpoint that it was made from"
            )
        layers = published_layers(detector, lambda name: name in checkpoint.tensors)
        _check_wiring(checkpoint, layers)
        _check_plain(checkpoint, layers)
        mapping: dict[str, str | None] = {}
        for number, layer in enumerate(layers):
            for part, path in layer.modules.items():
                for name in detector.get_submodule(path).state_dict():
                    mapping[_joined(f"model.{number}", part, name)] = f"{path}.{name}"
            mapping |= {f"model.{number}.{name}": ours for name, ours in layer.tensors.items()}
        head = f"model.{len(layers) - 1}"
        if _anchors(checkpoint) is not None:
            _check_anchors(checkpoint, detector)
        settled = [f"{head}.anchors", f"{head}.anchor_grid"]
        return mapping | {name: None for name in settled if name in checkpoint.tensors}


def _check_wiring(checkpoint: ForeignCheckpoint, layers: list[PublishedLayer]) -> None:
    """Hold what each saved layer says that it reads against what ours reads."""
    for number, layer in enumerate(layers):
        module = checkpoint.modules.get(f"model.{number}")
        stated = module.attributes.get("f") if module else None
        stated = [stated] if isinstance(stated, int) else stated
        if not isinstance(stated, list | tuple) or not all(isinstance(each, int) for each in stated):
            continue
        # Counted from the layer itself where it is negative; the first reads the picture.
        inputs = tuple(max(number + each, -1) if each < 0 else each for each in stated[:MOST_INPUTS])
        if inputs != layer.inputs or len(stated) > MOST_INPUTS:
            raise ArtifactError(
                f"{checkpoint.path}: layer {number} of this file reads layers {list(inputs)}, in the recipe's network "
                f"it reads {list(layer.inputs)}; the file is of another architecture"
            )


def _check_plain(checkpoint: ForeignCheckpoint, layers: list[PublishedLayer]) -> None:
    """Hold pooling, enlarging and the like, which have no tensors, against what ours does; functions are not seen."""
    with_tensors = {name.rpartition(".")[0] for name in checkpoint.tensors}
    found: dict[int, dict[str, ForeignModule]] = {}
    for path, module in checkpoint.modules.items():
        layer, (home, _, kind) = LAYER.fullmatch(path), module.kind.removeprefix(TORCH).partition(".")
        is_of_torch = module.kind.startswith(TORCH) and kind
        if layer and is_of_torch and home not in ELSEWHERE and path not in with_tensors:
            found.setdefault(int(layer[1]), {})[path] = module
    for number, theirs in found.items():
        ours = layers[number].plain if number < len(layers) else ()
        kinds = [module.kind.rpartition(".")[2] for module in theirs.values()]
        expected = [type(module).__name__ for module in ours]
        if kinds != expected:
            raise ArtifactError(
                f"{checkpoint.path}: layer {number} of this file has {listed(kinds)}, in the recipe's network it has "
                f"{', '.join(expected) or 'nothing of the kind'}; the file is of another architecture"
            )
        for (path, module), our in zip(theirs.items(), ours, strict=True):
            for fact in FACTS[type(our).__name__]:
                one, other = _alike(module.attributes.get(fact)), _alike(getattr(our, fact))
                if fact in module.attributes and one != other:
                    raise ArtifactError(
                        f"{checkpoint.path}: {fact} of {path} is {_shown(one)}, in the recipe's network {other}; the "
                        "file is of another architecture"
                    )


def _alike(value: Any) -> Any:
    """Return a number for two equal ones: windows are written in both ways."""
    is_pair = isinstance(value, tuple) and len(value) == 2 and all(isinstance(each, int | float) for each in value)
    return value[0] if is_pair and value[0] == value[1] else value


def _shown(value: Any) -> str:
    return listed([str(value)]) if value is None or isinstance(value, int | float | str) else type(value).__name__


def _check_anchors(checkpoint: ForeignCheckpoint, detector: Detector) -> None:
    """Hold the two forms in which anchors are saved against each other: in cells for losses, in pixels for boxes."""
    head, pixels = _head(checkpoint), _anchors(checkpoint)
    cells = checkpoint.tensors.get(f"{head}.anchors")
    if cells is None or pixels is None:
        return
    strides = torch.tensor(detector.strides)
    fits = cells.shape == pixels.shape and len(strides) == len(cells)
    if not fits or not torch.allclose(cells * strides[:, None, None], pixels, rtol=1e-2):
        raise ArtifactError(
            f"{checkpoint.path}: anchors and anchor_grid of this file contradict each other at strides "
            f"{list(detector.strides)}; it is of another architecture, or damaged"
        )


def _head(checkpoint: ForeignCheckpoint) -> str:
    numbers = [int(found[1]) for found in map(HEAD_KERNEL.fullmatch, checkpoint.tensors) if found]
    return f"model.{max(numbers)}"


def _anchors(checkpoint: ForeignCheckpoint) -> Tensor | None:
    """Return width and height in pixels, ``[levels, anchors, 2]``, or nothing where the file has none."""
    grid = checkpoint.tensors.get(f"{_head(checkpoint)}.anchor_grid")
    if grid is None:
        return None
    if grid.dim() != 6 or grid.shape[-1] != 2 or not 0 < grid.numel() <= 2 * MOST_ANCHORS or not grid.min() > 0:
        raise ArtifactError(f"{checkpoint.path}: anchor_grid has the shape {list(grid.shape)}, or no positive sizes")
    return grid.reshape(grid.shape[0], -1, 2)


def _num_classes(checkpoint: ForeignCheckpoint) -> int:
    anchors = _anchors(checkpoint)
    per_cell = 3 if anchors is None else anchors.shape[1]
    weight = checkpoint.tensors[f"{_head(checkpoint)}.m.0.weight"]
    outputs = len(weight) if weight.dim() and weight.numel() else 0
    count, rest = divmod(outputs, per_cell)
    if rest or not 5 < count <= 5 + MOST_CLASSES:
        raise ArtifactError(
            f"{checkpoint.path}: a head with {outputs:,} outputs for {per_cell} anchors has no whole number of "
            f"classes, or more than {MOST_CLASSES:,}"
        )
    return count - 5


def _activation(checkpoint: ForeignCheckpoint) -> str | None:
    """Return the one activation of all layers, or nothing where tensors alone were saved."""
    found = {
        _activation_name(checkpoint, path)
        for path, module in checkpoint.modules.items()
        if path.endswith(".act") or module.kind.startswith(f"{TORCH}activation.")
    }
    if len(found) > 1 or not found <= set(ACTIVATIONS.values()):
        raise ArtifactError(
            f"{checkpoint.path}: the layers of this file have the activations {listed(sorted(found))}; one for "
            f"all is taken, among {', '.join(ACTIVATIONS.values())} (with a slope of {SLOPE})"
        )
    return next(iter(found), None)


def _activation_name(checkpoint: ForeignCheckpoint, path: str) -> str:
    module = checkpoint.modules[path]
    kind = module.kind.rpartition(".")[2]
    slope = module.attributes.get("negative_slope", SLOPE)
    if kind == "LeakyReLU" and slope != SLOPE:
        return f"LeakyReLU of slope {slope if isinstance(slope, float) else '?'}"
    return ACTIVATIONS.get(kind, kind)


def _setting(recipe: Recipe, key: str, default: Any) -> Any:
    section, _, name = key.partition(".")
    return recipe.tables[section].get(name, default)


def _short(number: float) -> float:
    return int(number) if number == int(number) else number


def _joined(*parts: str) -> str:
    return ".".join(part for part in parts if part)


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the importer."""
    register("yolov7", Yolov7Importer)
