"""Any backbone of timm that yields feature maps, by name. Nothing is ever downloaded.

Reference: Wightman, PyTorch Image Models (2019).
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from detloom.errors import ArtifactError, RecipeError, suggest
from detloom.hookspecs import hookimpl
from detloom.interfaces import Backbone
from detloom.settings import InitialWeights
from detloom.structures import FeatureSpec

__all__ = ["TimmBackbone"]


class TimmBackbone(Backbone):
    """The feature levels of a timm model.

    Args:
        model: A name of ``timm.list_models()``.
        strides: Strides of the levels to return.
        checkpoint: A file of weights, .safetensors or .pth; empty for random weights.
        normalise: Subtract the mean and divide by the deviation that the model was made for.
        options: More keyword arguments of the timm model, such as img_size for some transformers.
    """

    def __init__(
        self,
        *,
        model: str = "resnet18",
        strides: Sequence[int] = (8, 16, 32),
        checkpoint: InitialWeights = "",
        normalise: bool = True,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        net, chosen = _create(model, tuple(strides), dict(options or {}))
        channels, info = net.feature_info.channels(), net.feature_info.reduction()
        self.net: nn.Module = net
        self.chosen = chosen
        self.out_specs = tuple(FeatureSpec(channels[index], info[index]) for index in chosen)
        self.channels_come_last = str(getattr(net, "output_fmt", "NCHW")).upper().endswith("NHWC")
        self.normalise = normalise
        config = _config(net)
        mean, std = config.get("mean", (0.485, 0.456, 0.406)), config.get("std", (0.229, 0.224, 0.225))
        self.mean: Tensor
        self.std: Tensor
        # They follow from the name, so they stand in no artifact.
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)
        if checkpoint:
            _load_(net, Path(checkpoint), model)

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        """Return the levels of RGB pictures with values in [0, 1]."""
        if self.normalise:
            images_BCHW = (images_BCHW - self.mean) / self.std
        features = self.net(images_BCHW)
        levels = tuple(features[index] for index in self.chosen)
        if self.channels_come_last:
            levels = tuple(level.permute(0, 3, 1, 2) for level in levels)
        return levels


def _create(name: str, strides: tuple[int, ...], options: dict[str, Any]) -> tuple[Any, tuple[int, ...]]:
    """Return a model of features, and the index of the level of each stride."""
    net = _features(name, options)
    chosen = _levels(name, net, strides)
    if chosen[-1] < len(net.feature_info.reduction()) - 1 and "out_indices" not in options:
        # Stages behind the last level wanted would be carried along for nothing.
        wanted = net.feature_info.out_indices[: chosen[-1] + 1]
        net = _features(name, {**options, "out_indices": wanted})
        chosen = _levels(name, net, strides)
    return net, chosen


def _features(name: str, options: dict[str, Any]) -> Any:
    import timm

    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        known = timm.list_models()
        raise RecipeError(
            f"timm {timm.__version__} has no model {name!r}.{suggest(architecture, known)} "
            f"It has {len(known)}: timm.list_models() names them"
        )
    try:
        return timm.create_model(name, **{**options, "pretrained": False, "features_only": True})
    except (RuntimeError, AttributeError, AssertionError, NotImplementedError, TypeError, ValueError) as error:
        raise RecipeError(
            f"timm's {name!r} cannot be used as a backbone: {str(error) or type(error).__name__}. "
            "Convolutional networks such as resnet18 or mobilenetv3_large_100 can"
        ) from error


def _levels(name: str, net: Any, strides: tuple[int, ...]) -> tuple[int, ...]:
    if not strides or list(strides) != sorted(set(strides)):
        raise RecipeError(f"strides must be ascending and different, got {list(strides)}")
    # Where several levels have a stride, the last has seen most.
    made = {int(stride): index for index, stride in enumerate(net.feature_info.reduction())}
    missing = [stride for stride in strides if stride not in made]
    if missing:
        raise RecipeError(f"timm's {name!r} has levels of strides {sorted(made)}, not of {missing}")
    channels_first = str(getattr(net, "output_fmt", "NCHW")).upper().rpartition(".")[2]
    if channels_first not in ("NCHW", "NHWC", "NONE"):
        raise RecipeError(f"the levels of timm's {name!r} are {channels_first} sequences, not maps")
    return tuple(made[stride] for stride in strides)


def _config(net: Any) -> Mapping[str, Any]:
    found = getattr(net, "pretrained_cfg", None) or getattr(net, "default_cfg", None)
    return found if isinstance(found, Mapping) else {}


def _load_(net: nn.Module, path: Path, name: str) -> None:
    """Take every tensor of the model of features from a file of the whole model's weights."""
    source = _read(path)
    # timm writes stages_0 in a model of features where the whole model has stages.0.
    flat = {key.replace(".", "_"): key for key in source}
    wanted = net.state_dict()
    taken = {}
    for key in wanted:
        plain = key.removeprefix("model.").replace(".", "_")
        found = flat.get(plain, flat.get(key.replace(".", "_")))
        if found is not None and source[found].shape == wanted[key].shape:
            taken[key] = source[found]
    absent = sorted(wanted.keys() - taken.keys())
    if absent:
        shown = ", ".join(absent[:5]) + (", ..." if len(absent) > 5 else "")
        raise ArtifactError(
            f"{path}: {len(absent)} of the {len(wanted)} tensors of timm's {name!r} are not there in their shape: "
            f"{shown}. Is it the checkpoint of another model?"
        )
    net.load_state_dict(taken)


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ArtifactError(f"{path}: there is no such file; weights are never downloaded, give a local path")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ArtifactError(f"{path}: no weights can be read from it safely: {error}") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(wrapper), Mapping):
            found = found[wrapper]
    if not isinstance(found, Mapping):
        raise ArtifactError(f"{path}: a mapping of names to tensors is needed, this is a {type(found).__name__}")
    return {str(key): value for key, value in found.items() if isinstance(value, Tensor)}


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the backbone."""
    register("timm", TimmBackbone)
