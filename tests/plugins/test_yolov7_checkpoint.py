"""Checkpoints in the published form, written here, read back, and held against the published outputs.

The classes that such files name are made for the moment of writing; nothing of them is there when the files are read.
"""

import json
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from detloom.artifacts import load_artifact
from detloom.assembly import assemble
from detloom.cli import cli
from detloom.detector import Detector
from detloom.errors import ArtifactError
from detloom.foreign import ForeignCheckpoint, read_checkpoint
from detloom.matching import import_checkpoint
from detloom.structures import HeadMaps
from detloom_plugins.anchor_head import AnchorHead
from detloom_plugins.yolov7_checkpoint import Yolov7Importer
from detloom_plugins.yolov7_layers import published_layers

Shared = Callable[[str], Path]
State = dict[str, Tensor]

TRAINING = ("yolov7-tiny", "yolov7", "yolov7x", "yolov7-w6", "yolov7-e6", "yolov7-d6", "yolov7-e6e")
DEPLOYED = (*(f"{name}.deploy" for name in TRAINING), "yolov7-tiny-silu.deploy")
FAST = ("yolov7-tiny", "yolov7-tiny.deploy", "yolov7-tiny-silu.deploy")
SLOW = (*TRAINING[1:], "yolov7.deploy", "yolov7-w6.deploy")
CLASSES = {"conv": "Conv", "repconv": "RepConv", "concat": "Concat", "add": "Shortcut", "maxpool": "MP"}


def described(shared: Shared, name: str) -> Any:
    return json.loads(shared(f"spec/official_layers/{name}.json").read_text())


def drawn(key: str, shape: list[int]) -> Tensor:
    """Return the tensor that the published parity vectors were computed with."""
    random = np.random.RandomState(zlib.crc32(key.encode()))
    if key.endswith("running_var"):
        return torch.from_numpy(np.asarray(0.5 + random.random_sample(shape), np.float32))
    value = random.standard_normal(shape)
    if key.endswith(".implicit"):
        value = 0.02 * value + (1 if ".im." in key else 0)
    elif len(shape) == 4:
        value = value * np.sqrt(2 / (shape[1] * shape[2] * shape[3]))
    else:
        value = 0.1 * value + (1 if key.endswith("weight") else 0)
    return torch.from_numpy(np.asarray(value, np.float32))


def published_state(model: Any, num_classes: int = 80) -> State:
    """Return tensors under their published names."""
    anchors = torch.tensor(model["anchors_px"], dtype=torch.float32)
    state: State = {}
    for layer in model["layers"]:
        for suffix, shape, *_ in layer["tensors"]:
            key = f"model.{layer['index']}.{suffix}"
            if suffix == "anchors":
                state[key] = anchors / torch.tensor(model["strides"])[:, None, None]
            elif suffix == "anchor_grid":
                state[key] = anchors.reshape(shape)
            elif suffix.endswith("num_batches_tracked"):
                state[key] = torch.tensor(7)
            else:
                sizes = [3 * (5 + num_classes) if layer["block"] == "head" and s == 255 else s for s in shape]
                state[key] = drawn(key, sizes)
    return state


def stranger(name: str) -> nn.Module:
    """Return an empty module of a class that this environment does not have."""
    home = "models.yolo" if name in ("Model", "Detect") else "models.common"
    cls = getattr(sys.modules[home], name, None)
    if cls is None:
        cls = type(name, (nn.Module,), {"__module__": home})
        setattr(sys.modules[home], name, cls)
    made: nn.Module = cls()
    return made


@contextmanager
def strangers() -> Iterator[None]:
    """Have the modules that published files name, for as long as it takes to write one."""
    names = ("models", "models.common", "models.yolo")
    sys.modules.update({name: ModuleType(name) for name in names})
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


def part(layer: Any, path: str, tensors: dict[str, list[int]]) -> nn.Module:
    """Return the module that has some tensors."""
    if "running_mean" in tensors:
        return nn.BatchNorm2d(tensors["weight"][0], eps=1e-3, momentum=0.03)
    if "implicit" in tensors:
        made = stranger("Implicit")
        made.implicit = nn.Parameter(torch.zeros(tensors["implicit"]))
        return made
    outputs, inputs, kernel, _ = tensors["weight"]
    stride = layer.get("stride", 1) if path in ("conv", "cv2.conv") else 1
    return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias="bias" in tensors)


def without_tensors(layer: Any) -> nn.Module:
    """Return a layer of a published network as it is before its tensors; pooling is inside of it."""
    if layer["kind"] == "upsample":
        return nn.Upsample(None, layer["scale"], layer["mode"])
    made = stranger("Detect" if layer["block"] == "head" else CLASSES.get(layer["kind"], "Other"))
    match layer["kind"]:
        case "maxpool":
            made.m = nn.MaxPool2d(layer["kernel"], layer["stride"], layer["padding"])
        case "sppcspc":
            made.m = nn.ModuleList(nn.MaxPool2d(window, 1, window // 2) for window in layer["pool_kernels"])
        case "downc":
            made.mp = nn.MaxPool2d(2, 2)
    return made


def published_layer(layer: Any, state: State, activation: Callable[[], nn.Module]) -> nn.Module:
    """Return a layer of a published network, with the attributes that such files have."""
    prefix = f"model.{layer['index']}."
    parts: dict[str, dict[str, list[int]]] = {}
    for key, tensor in state.items():
        if key.startswith(prefix):
            path, _, name = key.removeprefix(prefix).rpartition(".")
            parts.setdefault(path, {})[name] = list(tensor.shape)
    made = without_tensors(layer)
    for name, shape in parts.pop("", {}).items():
        made.register_buffer(name, torch.zeros(shape))
    for path, tensors in parts.items():
        at, (*outer, last) = made, path.split(".")
        for name in outer:
            if name not in at._modules:
                at.add_module(name, nn.ModuleList() if path[0] in "mi" else stranger("Conv"))
            at = at.get_submodule(name)
        at.add_module(last, part(layer, path, tensors))
        if last in ("bn", "rbr_identity"):
            at.act = activation()
    index = layer["index"]
    # As they are written: the layer before by its distance, others by their number.
    inputs = [-1 if each == index - 1 else each for each in layer["from"]]
    made.i, made.f, made.type, made.np = index, inputs[0] if len(inputs) == 1 else inputs, str(type(made)), 0  # type: ignore[assignment] # as the published ones have
    return made


def published_network(model: Any, state: State, activation: Callable[[], nn.Module] | None = None) -> nn.Module:
    """Return a network as published checkpoints hold it, whole."""
    leaky = "leaky" in model["layers"][1]["activation"]
    make = activation or (lambda: nn.LeakyReLU(0.1) if leaky else nn.SiLU())
    with torch.device("meta"):
        layers = [published_layer(layer, state, make) for layer in model["layers"]]
    network = stranger("Model")
    network.model = nn.Sequential(*layers)
    head = layers[-1]
    num_classes = state[f"model.{len(layers) - 1}.m.0.weight"].shape[0] // 3 - 5
    head.na, head.nc, head.no = 3, num_classes, num_classes + 5  # type: ignore[assignment] # as the published ones have
    network.names = [f"thing {index}" for index in range(num_classes)]  # type: ignore[assignment] # the same
    network.yaml = {"nc": num_classes, "backbone": [[-1, 1, "Conv", [32, 3, 1]]]}  # type: ignore[assignment] # the same
    network.stride = torch.tensor(model["strides"], dtype=torch.float32)
    network.load_state_dict(state, assign=True)
    return network


def write_whole(path: Path, model: Any, state: State, **kind: Any) -> Path:
    """Write a file as the released ones are."""
    with strangers():
        torch.save({"model": published_network(model, state), "optimizer": None, "epoch": -1}, path, **kind)
    return path


def picture() -> Tensor:
    return torch.from_numpy(np.random.RandomState(0).random_sample((1, 3, 128, 192)).astype(np.float32))


def assert_equals(found: Tensor, expected: Any, *, atol: float) -> None:
    assert list(found.shape) == expected["shape"]
    samples = found.flatten()[expected["flat_index"]].numpy()
    np.testing.assert_allclose(samples, expected["value"], rtol=1e-4, atol=atol)
    assert float(found.double().abs().sum()) == pytest.approx(expected["abs_sum"], rel=1e-5)
    assert float(found.max()) == pytest.approx(expected["max"], rel=1e-4)


def assert_outputs_are_published(detector: Detector, expected: Any) -> None:
    with torch.inference_mode():
        maps = detector(picture())
        found = detector.head.decode(maps.lead)
    assert isinstance(maps, HeadMaps)
    for level, raw in zip(maps.lead, expected["raw_levels"], strict=True):
        assert_equals(level.unflatten(1, (3, 85)).permute(0, 1, 3, 4, 2), raw, atol=1e-3)  # type: ignore[no-untyped-call] # torch types it not
    assert found.objectness_BP is not None
    corner_BP2, other_BP2 = found.boxes_BP4.chunk(2, dim=-1)
    scores_BPO = torch.cat((found.objectness_BP[..., None], found.class_logits_BPC), -1).sigmoid()
    rows_BPO = torch.cat(((corner_BP2 + other_BP2) / 2, other_BP2 - corner_BP2, scores_BPO), dim=-1)
    # Published are all cells of an anchor before those of the next.
    levels = [rows_BPO[:, grid.span].reshape(1, -1, grid.per_cell, 85).transpose(1, 2) for grid in found.priors.grids]
    assert_equals(torch.cat([level.flatten(1, 2) for level in levels], dim=1), expected["decoded"], atol=5e-3)


def published_outputs(shared: Shared, name: str) -> Any:
    return json.loads(shared("spec/golden/forward.json").read_text())["models"][name]


@pytest.fixture(scope="module")
def tiny(shared: Shared) -> Any:
    return described(shared, "yolov7-tiny")


@pytest.fixture(scope="module")
def tiny_state(tiny: Any) -> State:
    return published_state(tiny)


@pytest.fixture(scope="module")
def tiny_file(tiny: Any, tiny_state: State, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_whole(tmp_path_factory.mktemp("tiny") / "yolov7-tiny.pt", tiny, tiny_state)


@pytest.fixture
def tiny_network(tiny: Any, tiny_state: State) -> Callable[[], nn.Module]:
    """Return a function that makes the network of ``tiny_file``, where its classes are to be had."""
    return lambda: published_network(tiny, tiny_state)


@pytest.mark.parametrize("name", [*TRAINING, *DEPLOYED])
def test_layers_are_numbered_wired_and_shaped_as_published(name: str, shared: Shared) -> None:
    model = described(shared, name)
    deployed = name.endswith(".deploy")
    shapes = {f"model.{layer['index']}.{each[0]}": each[1] for layer in model["layers"] for each in layer["tensors"]}
    with torch.device("meta"):
        tensors = {key: torch.empty(shape) for key, shape in shapes.items() if "anchor" not in key}
        off: dict[str, Any] = {"head.implicit": False, "neck.auxiliary": []} if deployed else {}
        detector = assemble(name.removesuffix(".deploy"), off)
    anchors = published_state({**model, "layers": model["layers"][-1:]})
    tensors |= {key: anchors[key] for key in shapes if "anchor" in key}

    layers = published_layers(detector, tensors.__contains__)
    mapping = Yolov7Importer().mapping(ForeignCheckpoint(Path("file"), "", tensors, {}), detector)

    own = detector.state_dict()
    assert [list(layer.inputs) for layer in layers] == [layer["from"] for layer in model["layers"]]
    assert mapping.keys() == shapes.keys()
    assert {ours for ours in mapping.values() if ours} == own.keys()
    for theirs, ours in mapping.items():
        assert ours is None or [s for s in own[ours].shape if s != 1] == [s for s in shapes[theirs] if s != 1]


@pytest.mark.parametrize("name", [*FAST, *(pytest.param(slow, marks=pytest.mark.slow) for slow in SLOW)])
def test_a_published_file_gives_the_published_outputs(name: str, shared: Shared, tmp_path: Path) -> None:
    model = described(shared, name)
    path = write_whole(tmp_path / "any-name.pt", model, published_state(model))

    imported = import_checkpoint(path)

    path.unlink()
    assert imported.recipe.name == name.removesuffix(".deploy")
    assert "models" not in sys.modules
    assert_outputs_are_published(imported.detector, published_outputs(shared, name))


def test_the_command_writes_an_artifact_that_gives_the_published_outputs(
    tiny_file: Path, shared: Shared, tmp_path: Path
) -> None:
    out = tmp_path / "tiny.safetensors"

    result = CliRunner().invoke(cli, ["import", str(tiny_file), "-o", str(out), "--json"])

    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert (facts["recipe"], facts["importer"], facts["part"]) == ("yolov7-tiny", "yolov7", "model")
    assert (facts["tensors"], facts["parameters"], facts["settings"]) == (344, 6_228_762, {})
    detector = load_artifact(out)
    assert detector.names[:2] == ("thing 0", "thing 1")
    assert_outputs_are_published(detector, published_outputs(shared, "yolov7-tiny"))


def test_the_old_form_of_torch_files_is_read(tiny: Any, tiny_state: State, tmp_path: Path) -> None:
    with warnings.catch_warnings(action="ignore"):  # of sources that the old form would keep beside classes
        path = write_whole(tmp_path / "old.pt", tiny, tiny_state, _use_new_zipfile_serialization=False)

    imported = import_checkpoint(path)

    assert torch.equal(imported.detector.state_dict()["head.lead.2.conv.weight"], tiny_state["model.77.m.2.weight"])


def test_the_average_of_a_training_is_taken_in_full_precision(tiny: Any, tiny_state: State, tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    other = {key: tensor + 1 for key, tensor in tiny_state.items() if "anchor" not in key}
    with strangers():
        weights = published_network(tiny, tiny_state | other).half()
        average = published_network(tiny, tiny_state).half()
        optimizer = {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.01, "params": [0]}]}
        checkpoint = {
            "epoch": 3,
            "best_fitness": np.array([0.5]),
            "training_results": "1/300 0.5",
            "model": weights,
            "ema": average,
            "updates": 1000,
            "optimizer": optimizer,
            "wandb_id": None,
        }
        torch.save(checkpoint, path)

    imported = import_checkpoint(path)

    found = imported.detector.state_dict()["backbone.stem.0.conv.weight"]
    assert imported.part == "ema"
    assert found.dtype == torch.float32
    assert torch.equal(found, tiny_state["model.0.conv.weight"].half().float())


def test_a_deployed_file_switches_implicit_knowledge_off(shared: Shared, tmp_path: Path) -> None:
    model = described(shared, "yolov7-tiny.deploy")
    path = write_whole(tmp_path / "deployed.pt", model, published_state(model))

    imported = import_checkpoint(path)

    assert imported.settings == {"head.implicit": False}
    assert imported.recipe.tables["head"]["implicit"] is False


def test_a_deployed_file_drops_auxiliary_levels(shared: Shared) -> None:
    model = described(shared, "yolov7-w6.deploy")
    tensors = {
        f"model.{each['index']}.{name}": torch.empty(0) for each in model["layers"] for name, *_ in each["tensors"]
    }
    tensors["model.118.anchor_grid"] = torch.tensor(model["anchors_px"]).reshape(4, 1, 3, 1, 1, 2)
    recipe = assemble_on_meta("yolov7-w6").recipe
    assert recipe is not None

    settled = Yolov7Importer().overrides(ForeignCheckpoint(Path("file"), "", tensors, {}), recipe)

    assert settled == {"head.implicit": False, "neck.auxiliary": []}


def test_classes_names_and_anchors_come_from_the_file(tiny: Any, tmp_path: Path) -> None:
    model = {**tiny, "anchors_px": [[[w + 1, h + 1] for w, h in level] for level in tiny["anchors_px"]]}
    path = write_whole(tmp_path / "three.pt", model, published_state(model, num_classes=3))

    imported = import_checkpoint(path)

    head = imported.detector.head
    assert isinstance(head, AnchorHead)
    assert head.num_classes == 3
    assert imported.detector.names == ("thing 0", "thing 1", "thing 2")
    assert head.anchors[0][0] == (11.0, 14.0)
    assert list(imported.settings) == ["head.anchors"]


def test_names_can_be_given(tiny: Any, tmp_path: Path) -> None:
    path, names = tmp_path / "two.safetensors", tmp_path / "names.txt"
    save_file(published_state(tiny, num_classes=2), path)
    names.write_text("cat\ndog\n", encoding="utf-8")
    out = tmp_path / "out.safetensors"

    arguments = ["import", str(path), "-o", str(out), "--recipe", "yolov7-tiny", "--names", str(names)]
    result = CliRunner().invoke(cli, arguments)

    assert result.exit_code == 0, result.output
    assert load_artifact(out).names == ("cat", "dog")


@pytest.mark.parametrize("form", ["tensors", "own names", "whole"])
def test_names_of_another_count_are_told_with_their_file(
    form: str, tiny_state: State, tiny_file: Path, tmp_path: Path
) -> None:
    path, names, count = tmp_path / "weights.pt", tmp_path / "names.txt", 80
    names.write_text("cat\ndog\n", encoding="utf-8")
    if form == "tensors":
        torch.save(tiny_state, path)
    elif form == "own names":
        torch.save(assemble("yolov7-tiny", num_classes=3).state_dict(), path)
        count = 3
    else:
        path = tiny_file
    out = tmp_path / "out.safetensors"
    arguments = ["import", str(path), "-o", str(out), "--recipe", "yolov7-tiny", "--names", str(names)]

    result = CliRunner().invoke(cli, arguments)

    assert result.exit_code == 2
    assert f"{path}: the checkpoint has {count} classes, but {names} has 2 names; give one" in result.output
    assert not out.exists()


@pytest.mark.slow
def test_names_of_another_count_are_told_where_no_recipe_is_named(tiny_state: State, tmp_path: Path) -> None:
    torch.save(tiny_state, tmp_path / "weights.pt")

    with pytest.raises(ArtifactError, match="has 80 classes, but the argument names has 1 name; give one"):
        import_checkpoint(tmp_path / "weights.pt", names=["cat"])


def test_a_file_that_exists_is_left_alone_unless_forced(tiny_state: State, tmp_path: Path) -> None:
    path, out = tmp_path / "weights.pt", tmp_path / "weights.safetensors"
    torch.save(tiny_state, path)
    out.write_text("mine")
    arguments = ["import", str(path), "--recipe", "yolov7-tiny"]

    refused = CliRunner().invoke(cli, arguments)

    assert refused.exit_code == 2
    assert f"{out}: there is a file of that name; --force takes its place" in refused.output
    assert out.read_text() == "mine"
    forced = CliRunner().invoke(cli, [*arguments, "--force"])
    assert forced.exit_code == 0, forced.output
    assert load_artifact(out).names[79] == "79"


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_state_dict_is_taken_when_its_recipe_is_named(prefix: str, tiny_state: State, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"state_dict": {prefix + key: tensor for key, tensor in tiny_state.items()}}, path)

    imported = import_checkpoint(path, recipe="yolov7-tiny")

    assert imported.part == "state_dict"
    assert imported.detector.names[79] == "79"
    assert torch.equal(imported.detector.state_dict()["neck.spp.mix.bn.bias"], tiny_state["model.35.bn.bias"])


def test_a_state_dict_that_fits_two_recipes_is_not_guessed(tiny_state: State, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(tiny_state, path)

    with pytest.raises(ArtifactError, match=r"(?s)several recipes.*yolov7-tiny, .*yolov7-tiny-silu.*--recipe"):
        import_checkpoint(path)


def test_tensors_left_over_on_both_sides_are_listed(tiny_state: State, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    state = dict(tiny_state)
    state["model.0.conv.wait"] = state.pop("model.0.conv.weight")
    state["model.1.bn.bias"] = torch.zeros(65)
    torch.save(state, path)

    with pytest.raises(ArtifactError) as error:
        import_checkpoint(path, recipe="yolov7-tiny")

    assert "1 of the file are left over: model.0.conv.wait\n" in str(error.value)
    assert "1 of the recipe's network are not in the file: backbone.stem.0.conv.weight\n" in str(error.value)
    assert "1 differ: model.1.bn.bias [65] for backbone.stem.1.bn.bias [64]\n" in str(error.value)


def test_a_wrong_recipe_is_said_in_few_words(tiny_state: State, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(tiny_state, path)

    with pytest.raises(ArtifactError) as error:
        import_checkpoint(path, recipe="yolov7")

    assert len(str(error.value)) < 1500
    assert "  98 of the file are left over: model.10.conv.weight, " in str(error.value)
    assert " and 93 more\n  318 of the recipe's network are not in the file: " in str(error.value)
    assert " and 139 more\n  Name another with --recipe" in str(error.value)


def test_what_most_recipes_are_refused_for_is_said_first(tiny_state: State, tmp_path: Path) -> None:
    path = tmp_path / "fused.pt"
    torch.save(tiny_state | {"model.0.conv.bias": torch.ones(32)}, path)

    with pytest.raises(ArtifactError) as error:
        import_checkpoint(path)

    assert len(str(error.value)) < 2000
    first, second, *_ = str(error.value).splitlines()
    assert first.endswith("this checkpoint fits no recipe; why not, by recipe:")
    assert "yolov7, yolov7-tiny, " in second
    assert "the network in this file was fused" in second


def test_the_nearest_recipe_is_named_when_none_fits(tiny_state: State, tmp_path: Path) -> None:
    path = tmp_path / "odd.pt"
    torch.save(tiny_state | {"model.2.bn.weight": torch.ones(33)}, path)

    complaint = r"(?s)fits no recipe; the nearest is 'yolov7-tiny'.*1 differ: model\.2\.bn\.weight \[33\]"
    with pytest.raises(ArtifactError, match=complaint):
        import_checkpoint(path)


@pytest.mark.parametrize(
    ("attribute", "value", "complaint"),
    [
        ("model.10.bn.eps", 1e-5, r"eps of model\.10\.bn\.weight is 1e-05"),
        ("model.1.conv.stride", (1, 1), r"stride of model\.1\.conv\.weight is tuple, .* \(2, 2\)"),
        ("model.6.f", [-1, -3, -2, -4], r"layer 6 of this file reads layers \[5, 3, 4, 2\].*\[5, 4, 3, 2\]"),
        ("model.3.act.negative_slope", 0.2, "LeakyReLU of slope 0.2, leaky-relu"),
        ("model.1.more", nn.Hardswish(), "Hardswish, leaky-relu"),
        ("model.1.conv.padding_mode", "reflect", r"padding_mode of model\.1\.conv\.weight is reflect, .* zeros"),
        ("model.31.m.kernel_size", 3, r"kernel_size of model\.31\.m is 3, in the recipe's network 5"),
        ("model.31.m.padding", (2, 1), r"padding of model\.31\.m is tuple, in the recipe's network 2"),
        ("model.8.m.ceil_mode", True, r"ceil_mode of model\.8\.m is True, in the recipe's network False"),
        (
            "model.8.m",
            nn.AvgPool2d(2, 2),
            "layer 8 of this file has AvgPool2d, in the recipe's network it has MaxPool2d",
        ),
        ("model.39.mode", "bilinear", r"mode of model\.39 is bilinear, in the recipe's network nearest"),
        ("model.39.scale_factor", 3.0, r"scale_factor of model\.39 is 3\.0, in the recipe's network 2"),
        ("model.1.pool", nn.MaxPool2d(3, 1, 1), "layer 1 of this file has MaxPool2d, .* has nothing of the kind"),
        ("model.1.norm", nn.InstanceNorm2d(64), "layer 1 of this file has InstanceNorm2d"),
        ("model.6.f", [0] * 100_000, r"layer 6 of this file reads layers \[0, (0, ){18}0\], in"),
        ("names", ["a" * 501] * 80, "up to 500 letters"),
        ("names", ["only one"], "1 class names for 80 classes"),
        ("names", [1] * 80, "no printable text"),
        ("names", ["\x1b[2J"] * 80, "no printable text"),
    ],
)
def test_what_is_no_tensor_must_agree_too(
    attribute: str, value: object, complaint: str, tiny_network: Callable[[], nn.Module], tmp_path: Path
) -> None:
    at, _, name = attribute.rpartition(".")
    path = tmp_path / "odd.pt"
    with strangers():
        network = tiny_network()
        setattr(network.get_submodule(at), name, value)
        torch.save(network, path)

    with pytest.raises(ArtifactError, match=complaint):
        import_checkpoint(path, recipe="yolov7-tiny")


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"model.77.anchors": torch.ones(3, 3, 2)}, "anchors and anchor_grid of this file contradict"),
        ({"model.0.conv.bias": torch.ones(32)}, r"was fused.*model\.0\.conv\.bias"),
        ({"model.5.bn.running_var": torch.full((32,), torch.inf)}, r"model\.5\.bn\.running_var hold infinite numbers"),
        ({"model.77.m.0.weight": torch.ones(254, 128, 1, 1)}, "254 outputs for 3 anchors"),
        ({"model.77.m.0.weight": torch.ones(())}, "0 outputs for 3 anchors"),
        ({"model.77.m.0.weight": torch.ones(3 * 10**7, 0)}, "0 outputs for 3 anchors"),
        ({"model.77.m.0.weight": torch.ones(3 * 10**6, 1)}, "or more than 100,000"),
        ({"model.77.anchors": torch.ones(3, 4, 2)}, "anchors and anchor_grid of this file contradict"),
        ({"model.77.anchors": torch.ones(())}, "anchors and anchor_grid of this file contradict"),
        ({"model.77.anchor_grid": torch.ones(3, 1, 10**5, 1, 1, 2)}, "anchor_grid"),
        ({"model.77.anchor_grid": torch.zeros(3, 1, 3, 1, 1, 2)}, "anchor_grid"),
    ],
)
def test_tensors_that_make_no_sense_are_refused(
    changed: State, complaint: str, tiny_state: State, tmp_path: Path
) -> None:
    path = tmp_path / "odd.pt"
    torch.save(tiny_state | changed, path)

    with pytest.raises(ArtifactError, match=complaint):
        import_checkpoint(path, recipe="yolov7-tiny")


def test_silu_in_a_tiny_network_is_found_by_its_modules(tiny: Any, tiny_state: State, tmp_path: Path) -> None:
    path = tmp_path / "silu.pt"
    with strangers():
        torch.save(published_network(tiny, tiny_state, nn.SiLU), path)

    imported = import_checkpoint(path)

    assert (imported.recipe.name, imported.settings) == ("yolov7-tiny-silu", {})


def test_a_recipe_of_another_family_is_refused(tiny_state: State, tmp_path: Path) -> None:
    path, recipe = tmp_path / "weights.pt", tmp_path / "mine.toml"
    torch.save(tiny_state, path)
    recipe.write_text('extends = "yolov7-tiny"\n[backbone]\nuse = "timm"\nname = "resnet18"\n', encoding="utf-8")

    with pytest.raises(ArtifactError, match="'mine' is no network of the YOLOv7 family"):
        import_checkpoint(path, recipe=recipe)


def test_a_network_in_grouped_form_is_refused() -> None:
    with torch.device("meta"):
        detector = assemble("yolov7-e6e", {"backbone.grouped": True})

    with pytest.raises(ArtifactError, match="published checkpoints have no GroupedElan"):
        published_layers(detector, lambda name: name.endswith("cv1.conv.weight"))


def test_names_of_nobody_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    torch.save({"layer.weight": torch.ones(3)}, path)

    with pytest.raises(
        ArtifactError, match=r"no importer knows these tensors: layer\.weight\n  importers: own-names, yolov7"
    ):
        import_checkpoint(path)


def test_a_state_dict_of_a_detector_comes_back(tmp_path: Path) -> None:
    detector = assemble("demo", num_classes=3)
    torch.save(detector.state_dict(), tmp_path / "mine.pt")

    imported = import_checkpoint(tmp_path / "mine.pt", recipe="demo", overrides={"head.num_classes": 3})

    again = imported.detector.state_dict()
    assert imported.importer == "own-names"
    assert all(torch.equal(tensor, again[name]) for name, tensor in detector.state_dict().items())


@pytest.mark.parametrize(
    ("source", "overrides"),
    [("demo", {}), ("demo", {"head.use": "decoupled", "assigner.use": "simota", "criterion.use": "yolox"})],
)
def test_the_tensors_of_a_state_dict_say_how_many_classes_it_has(
    source: str, overrides: dict[str, Any], tmp_path: Path
) -> None:
    detector = assemble(source, overrides, num_classes=3)
    torch.save(detector.state_dict(), tmp_path / "mine.pt")

    imported = import_checkpoint(tmp_path / "mine.pt", recipe=source, overrides=overrides)

    again = imported.detector.state_dict()
    assert imported.settings == {"head.num_classes": 3}
    assert imported.detector.names == ("0", "1", "2")
    assert all(torch.equal(tensor, again[name]) for name, tensor in detector.state_dict().items())


def test_a_state_dict_of_another_class_count_needs_no_setting_and_is_told_to_have_no_names(tmp_path: Path) -> None:
    torch.save(assemble("yolov7-tiny", num_classes=3).state_dict(), tmp_path / "own.pt")
    artifact = tmp_path / "own.safetensors"

    result = CliRunner().invoke(cli, ["import", str(tmp_path / "own.pt"), "--recipe", "yolov7-tiny"])

    assert result.exit_code == 0, result.output
    assert "as the checkpoint has it: head.num_classes = 3" in result.output
    assert "they are called by their numbers; --names FILE gives them names" in result.output
    assert load_artifact(artifact).head.num_classes == 3


@pytest.mark.slow
def test_a_state_dict_of_another_class_count_is_told_the_command_that_takes_it(tmp_path: Path) -> None:
    path = tmp_path / "own.pt"
    torch.save(assemble("yolov7-tiny", num_classes=3).state_dict(), path)

    with pytest.raises(ArtifactError) as caught:
        import_checkpoint(path)

    assert "fits several recipes" in str(caught.value)
    assert f"`detloom import {path} --recipe yolov7-tiny`" in str(caught.value)


def test_a_class_count_that_was_set_is_not_replaced(tmp_path: Path) -> None:
    torch.save(assemble("demo", num_classes=3).state_dict(), tmp_path / "own.pt")

    with pytest.raises(ArtifactError, match="does not fit the recipe 'demo'"):
        import_checkpoint(tmp_path / "own.pt", recipe="demo", overrides={"head.num_classes": 4})


def test_an_artifact_is_not_imported_again(tiny_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "tiny.safetensors"
    CliRunner().invoke(cli, ["import", str(tiny_file), "-o", str(out)])

    result = CliRunner().invoke(cli, ["import", str(out), "-o", str(tmp_path / "again.safetensors")])

    assert result.exit_code == 2
    assert "is an artifact of detloom already" in result.output


def test_the_checkpoint_is_not_overwritten(tiny_state: State, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(tiny_state, path)

    result = CliRunner().invoke(cli, ["import", str(path)])

    assert result.exit_code == 2
    assert "would take the checkpoint's place" in result.output


@pytest.fixture(scope="module")
def small_file(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return a file of a network of two layers, the head one of them."""
    path = tmp_path_factory.mktemp("small") / "small.pt"
    head = {**tiny["layers"][-1], "index": 1, "from": [0], "activation": "leaky_relu_0.1"}
    model = {**tiny, "layers": [tiny["layers"][0], head]}
    # Few numbers, so that damage mostly hits what describes them.
    state = {key: each[:, :4].clone() if each.dim() == 4 else each for key, each in published_state(model, 1).items()}
    with strangers(), warnings.catch_warnings(action="ignore"):
        torch.save(published_network(model, state), path, _use_new_zipfile_serialization=False)
    return path.read_bytes()


@given(data=st.data())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_network_gives_a_complaint_and_nothing_else(
    small_file: bytes, data: st.DataObject, tmp_path: Path
) -> None:
    content = bytearray(small_file)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.pt"
    path.write_bytes(content)

    with pytest.raises(ArtifactError):
        import_checkpoint(path, recipe="yolov7-tiny")


def assemble_on_meta(name: str) -> Detector:
    with torch.device("meta"):
        return assemble(name)


def test_a_small_network_is_read_before_it_is_damaged(small_file: bytes, tmp_path: Path) -> None:
    path = tmp_path / "small.pt"
    path.write_bytes(small_file)

    checkpoint = read_checkpoint(path)

    assert checkpoint.modules["model.0.act"].kind == "torch.nn.modules.activation.LeakyReLU"
    assert Yolov7Importer().class_names(checkpoint) == ("thing 0",)
