"""The average of artifacts: uniform and greedy, what does not fit, and what is written."""

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from narrow_recipe import NARROW
from torch import nn

import detloom
from detloom.artifacts import read_artifact, save_artifact
from detloom.assembly import assemble
from detloom.cli import cli
from detloom.data.splits import open_splits
from detloom.detector import Detector
from detloom.durable import read_tensors, write_tensors
from detloom.engine.averaging import average
from detloom.engine.likeness import _tensor_complaint
from detloom.engine.statistics import renew_statistics_, training_pictures
from detloom.errors import ArtifactError, DetloomError, RecipeError
from detloom.interfaces import Metrics
from detloom.recipe import load_recipe
from detloom.scenes import write_scenes

RECIPE = load_recipe(
    "yolov7-tiny",
    {
        **NARROW,
        "data.image_size": 64,
        "data.workers": 0,
        "train.batch": 2,
    },
)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "scenes"
    write_scenes(folder, train=4, val=2)
    return folder


@pytest.fixture
def parts(tmp_path: Path, scenes: Path) -> list[Path]:
    """Return three artifacts of one network with other weights, the n-th of which was in n batches."""
    names = open_splits(scenes, RECIPE.data)[0].names
    paths = []
    for index in range(3):
        torch.manual_seed(index)
        detector = assemble(RECIPE, names=names)
        for module in detector.modules():
            if isinstance(module, nn.BatchNorm2d) and module.num_batches_tracked is not None:
                module.num_batches_tracked.fill_(index)
                nn.init.uniform_(module.weight, 0.5, 1.5)
        paths.append(tmp_path / f"{index}.safetensors")
        save_artifact(paths[-1], detector, recipe=RECIPE, names=names)
    return paths


@pytest.fixture
def aps(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[float]]:
    """Return what makes evaluations find these APs in turn, and gives back those left."""

    def prepare(*values: float) -> list[float]:
        left = list(values)

        def evaluate(_detector: Detector, *_: object, **__: object) -> Metrics:
            return Metrics({"AP": left.pop(0), "AP50": 0.5, "AP75": float("nan")}, {})

        monkeypatch.setattr("detloom.engine.soup.evaluate", evaluate)
        return left

    return prepare


def slow_mean(paths: list[Path]) -> dict[str, list[float]]:
    """Return the mean of each floating entry, number by number, in Python's float64."""
    tensors = [read_artifact(path).tensors for path in paths]
    return {
        name: [
            sum(column) / len(paths)
            for column in zip(*(each[name].flatten().tolist() for each in tensors), strict=True)
        ]
        for name, entry in tensors[0].items()
        if entry.is_floating_point()
    }


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(cli, ["average", *(str(each) for each in arguments)])


def test_uniform_average_is_the_mean_in_float64(parts: list[Path], tmp_path: Path) -> None:
    made = detloom.average(parts, out=tmp_path / "soup.safetensors")

    artifact = read_artifact(tmp_path / "soup.safetensors")
    for name, values in slow_mean(parts).items():
        expected = torch.tensor(values, dtype=torch.float64).float()
        assert torch.equal(artifact.tensors[name].flatten(), expected), name
        assert torch.equal(made.detector.state_dict()[name], artifact.tensors[name])
    counts = {int(entry) for name, entry in artifact.tensors.items() if name.endswith("num_batches_tracked")}
    assert counts == {2}
    assert "fits none of the averaged layers" in made.notices[0]
    assert "from one start" in made.notices[1]
    assert not made.detector.training


def test_metadata_names_the_parts_and_their_hashes(parts: list[Path], tmp_path: Path) -> None:
    detloom.average(parts, out=tmp_path / "soup.safetensors")

    noted = read_artifact(tmp_path / "soup.safetensors").extra["average"]
    assert noted["method"] == "uniform"
    assert [each["file"] for each in noted["parts"]] == [str(path) for path in parts]
    assert [each["sha256"] for each in noted["parts"]] == [
        hashlib.sha256(path.read_bytes()).hexdigest() for path in parts
    ]


def test_statistics_are_those_of_the_training_pictures(parts: list[Path], scenes: Path) -> None:
    made = average(parts, data=scenes)

    bare = average(parts).detector
    train, _ = open_splits(scenes, RECIPE.data)
    assert renew_statistics_(bare, training_pictures(bare, train, RECIPE)) == 4
    for name, entry in bare.state_dict().items():
        assert torch.equal(entry, made.detector.state_dict()[name]), name
    assert made.statistics_pictures == 4
    assert made.notices == ()
    assert made.metrics is not None
    assert set(made.metrics) >= {"AP", "AP50"}


def test_statistics_stay_where_that_is_asked_for(parts: list[Path], scenes: Path) -> None:
    made = average(parts, data=scenes, recalibrate=False)

    bare = average(parts).detector.state_dict()
    assert all(torch.equal(entry, bare[name]) for name, entry in made.detector.state_dict().items())
    assert made.statistics_pictures == 0
    assert len(made.notices) == 1


def test_greedy_keeps_what_does_not_lower_the_ap(
    parts: list[Path], scenes: Path, tmp_path: Path, aps: Callable[..., list[float]]
) -> None:
    # The parts, then 1 with 2, which is worse, then 1 with 0, which is equal.
    left = aps(0.1, 0.3, 0.2, 0.29, 0.3)

    made = average(parts, out=tmp_path / "soup.safetensors", data=scenes, greedy=True, recalibrate=False)

    assert left == []
    assert [part.used for part in made.parts] == [True, True, False]
    assert [part.ap for part in made.parts] == [0.1, 0.3, 0.2]
    assert made.metrics is not None
    assert made.metrics["AP"] == 0.3
    artifact = read_artifact(tmp_path / "soup.safetensors")
    for name, values in slow_mean(parts[:2]).items():
        assert torch.equal(artifact.tensors[name].flatten(), torch.tensor(values, dtype=torch.float64).float())
    assert artifact.extra["metrics"] == {"AP": 0.3, "AP50": 0.5}


def test_greedy_average_of_one_is_that_part_with_its_own_statistics(
    parts: list[Path], scenes: Path, aps: Callable[..., list[float]]
) -> None:
    aps(0.1, 0.3, 0.2, 0.29, 0.28)

    made = average(parts, data=scenes, greedy=True)

    best = read_artifact(parts[1]).tensors
    assert all(torch.equal(entry, best[name]) for name, entry in made.detector.state_dict().items())
    assert "the best part alone" in made.notices[0]


def test_greedy_average_that_cannot_be_measured_is_refused(
    parts: list[Path], scenes: Path, tmp_path: Path, aps: Callable[..., list[float]]
) -> None:
    aps(float("nan"))

    with pytest.raises(DetloomError, match="AP cannot be measured"):
        average(parts, out=tmp_path / "soup.safetensors", data=scenes, greedy=True)

    assert not (tmp_path / "soup.safetensors").exists()


def test_weighted_average_is_the_weighted_mean(parts: list[Path], tmp_path: Path) -> None:
    made = average(parts, out=tmp_path / "soup.safetensors", weights=[1, 2, 5])

    name = "backbone.stem.0.conv.weight"
    one, two, three = (read_artifact(path).tensors[name].double() for path in parts)
    torch.testing.assert_close(
        read_artifact(tmp_path / "soup.safetensors").tensors[name].double(),
        (one + 2 * two + 5 * three) / 8,
        rtol=1e-7,
        atol=1e-9,
    )
    assert made.method == "weighted"
    assert [part.weight for part in made.parts] == [1 / 8, 2 / 8, 5 / 8]


def test_each_part_is_measured_and_an_average_below_the_best_is_told(
    parts: list[Path], scenes: Path, aps: Callable[..., list[float]]
) -> None:
    left = aps(0.1, 0.3, 0.2, 0.25)

    made = average(parts, data=scenes)

    assert left == []
    assert [part.ap for part in made.parts] == [0.1, 0.3, 0.2]
    assert made.metrics is not None
    assert made.metrics["AP"] == 0.25
    (notice,) = made.notices
    assert notice.startswith(f"its AP is 0.050 below that of {parts[1]}: ")


def with_recipe(path: Path, overrides: dict[str, Any]) -> None:
    """Let an artifact have been trained with other settings."""
    artifact = read_artifact(path)
    detector = detloom.load(path)
    save_artifact(path, detector, recipe=load_recipe(artifact.recipe, overrides), names=artifact.names)


def test_average_of_parts_of_the_data_is_of_all_of_it(
    parts: list[Path], scenes: Path, tmp_path: Path, aps: Callable[..., list[float]]
) -> None:
    aps(0.1, 0.1, 0.2)
    for part, path in enumerate(parts[:2]):
        with_recipe(path, {"data.fraction": 0.5, "data.part": part, "data.part_seed": 7})

    made = average(parts[:2], out=tmp_path / "soup.safetensors", data=scenes)

    assert [part.data["part"] for part in made.parts] == [0, 1]
    assert made.statistics_pictures == 4
    soup = read_artifact(tmp_path / "soup.safetensors")
    assert soup.recipe.data.fraction == 1
    assert soup.recipe.data.image_size == 64
    assert [each["data"] for each in soup.extra["average"]["parts"]] == [
        {"fraction": 0.5, "part": part, "part_seed": 7} for part in (0, 1)
    ]


def test_average_of_parts_of_one_part_of_the_data_keeps_to_it(
    parts: list[Path], scenes: Path, aps: Callable[..., list[float]]
) -> None:
    aps(0.1, 0.1, 0.2)
    for path in parts[:2]:
        with_recipe(path, {"data.fraction": 0.5})

    assert average(parts[:2], data=scenes).statistics_pictures == 2


def test_holdouts_that_differ_are_told(parts: list[Path], scenes: Path, aps: Callable[..., list[float]]) -> None:
    aps(0.1, 0.1, 0.2)
    for seed, path in enumerate(parts[:2]):
        with_recipe(path, {"data.holdout": 0.25, "train.seed": seed})

    (notice,) = average(parts[:2], data=scenes).notices

    assert notice.startswith("what is held out follows train.seed, in which the parts differ")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": [1, 2]}, "there are 2 for 3 artifacts"),
        ({"weights": [1, 0, 1]}, "above 0 and finite, got 0; leave out"),
        ({"weights": [1, math.inf, 1]}, "got inf"),
        ({"weights": [1, 1, 1], "greedy": True, "data": "here"}, "a greedy average takes what it takes alike"),
    ],
)
def test_weights_that_cannot_be_are_refused(parts: list[Path], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        average(parts, **settings)


def changed(path: Path, change: Callable[[dict[str, torch.Tensor], dict[str, str]], None]) -> None:
    tensors, metadata = read_tensors(path)
    change(tensors, metadata)
    write_tensors(path, tensors, metadata)


def other_shape(tensors: dict[str, torch.Tensor], _: dict[str, str]) -> None:
    tensors[max(tensors)] = torch.ones(7)


def lost(tensors: dict[str, torch.Tensor], _: dict[str, str]) -> None:
    del tensors[min(tensors)]


def other_names(_: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    metadata["names"] = json.dumps(["x", *json.loads(metadata["names"])[1:]])


def other_head(_: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    metadata["recipe"] = metadata["recipe"].replace("stem = [[3, 2, 8], [3, 2, 8]]", "stem = [[3, 2, 8], [3, 2, 9]]")


def folded(_: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    metadata["folded"] = json.dumps(["fuse-bn"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_shape, r"the tensor \S+ is float32 \[7\]; float32 \[.+\] fits"),
        (lost, r"the tensor \S+ is only in .*0\.safetensors"),
        (other_names, r"its classes are x, .*; those of .*0\.safetensors are"),
        (other_head, r"its \[backbone\] has stem = .*9.*; that of .*0\.safetensors has"),
        (folded, "deployed form"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_written(
    parts: list[Path], tmp_path: Path, change: Callable[..., None], message: str
) -> None:
    changed(parts[2], change)

    with pytest.raises(ArtifactError, match=message) as caught:
        average(parts, out=tmp_path / "soup.safetensors")

    assert str(caught.value).startswith(f"{parts[2]}: ")
    assert f"has the network, the settings and the classes of {parts[0]}" in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.safetensors", "1.safetensors", "2.safetensors"]


def test_integers_that_differ_have_no_mean() -> None:
    own, its = torch.tensor([1, 2]), torch.tensor([1, 3])

    assert "holds integers" in str(_tensor_complaint(own, its, "order"))
    assert _tensor_complaint(own, its, "norm.num_batches_tracked") is None


def test_requests_that_cannot_be_met_are_refused(parts: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="at least two artifacts, got 1"):
        average(parts[:1])
    with pytest.raises(ArtifactError, match="is named twice"):
        average([parts[0], tmp_path / "." / parts[0].name])
    with pytest.raises(ArtifactError, match="the place of one of its parts"):
        average(parts, out=parts[1])
    with pytest.raises(ArtifactError, match="in a folder that exists"):
        average(parts, out=tmp_path / "none" / "soup.safetensors")
    with pytest.raises(ArtifactError, match=r"a name that ends in \.safetensors"):
        average(parts, out=tmp_path / "soup.pt")
    with pytest.raises(RecipeError, match="greedy: this needs pictures"):
        average(parts, greedy=True)
    with pytest.raises(RecipeError, match="recalibrate: this needs pictures"):
        average(parts, recalibrate=True)
    with pytest.raises(RecipeError, match="cannot be used here"):
        average(parts, device="cuda:99")


def test_command_prints_json_with_stable_keys(parts: list[Path], scenes: Path, tmp_path: Path) -> None:
    out = tmp_path / "soup.safetensors"

    result = run(*parts, "-o", out, "--data", scenes, "--greedy", "--json")

    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert list(facts) == ["artifact", "method", "parts", "statistics_pictures", "metrics", "notices"]
    assert [list(each) for each in facts["parts"]] == [["file", "sha256", "used", "weight", "data", "AP"]] * 3
    assert facts["metrics"]["AP"] >= max(each["AP"] for each in facts["parts"])
    assert detloom.load(out).names == read_artifact(parts[0]).names


def test_command_tells_what_it_took_and_what_to_know(parts: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "soup.safetensors"

    result = run(*parts, "-o", out)

    assert result.exit_code == 0, result.output
    assert result.stdout.count("  takes  33.3%  ") == 3
    assert f"wrote {out}" in result.stdout
    assert "notice: its batch norm statistics are the mean of the parts'" in result.stderr
    assert run(parts[0], "-o", tmp_path / "other.safetensors").exit_code == 2
    assert run(*parts, "-o", tmp_path / "other.safetensors", "--set", "train.epochs=3").exit_code == 2


def test_command_shows_parts_of_the_data_weights_and_what_the_average_is_worth(
    parts: list[Path], scenes: Path, tmp_path: Path, aps: Callable[..., list[float]]
) -> None:
    aps(0.1, 0.2, 0.25)
    with_recipe(parts[1], {"data.fraction": 0.5, "data.part": 1})
    out = tmp_path / "soup.safetensors"

    result = run(*parts[:2], "-o", out, "--data", scenes, "--weights", "1,3")

    assert result.exit_code == 0, result.output
    assert f"  takes  25.0%  AP 0.100  {parts[0]}\n" in result.stdout
    assert f"  takes  75.0%  AP 0.200  {parts[1]}  (learned from part 1 of 0.5 of the data)\n" in result.stdout
    assert "the average: AP 0.250  AP50 0.500" in result.stdout
    assert "the parts:   AP 0.100 to 0.200, on average 0.150" in result.stdout
    refused = run(*parts[:2], "-o", tmp_path / "other.safetensors", "--weights", "1,b")
    assert refused.exit_code == 2
    assert "'1,b' is no list of numbers with commas, as in 1,2,3" in refused.output


def test_command_leaves_a_file_that_exists_alone_unless_forced(parts: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "soup.safetensors"
    out.write_text("mine")

    refused = run(*parts, "-o", out)

    assert refused.exit_code == 2
    assert f"{out}: there is a file of that name; --force takes its place" in refused.output
    assert out.read_text() == "mine"
    forced = run(*parts, "-o", out, "--force")
    assert forced.exit_code == 0, forced.output
    assert read_artifact(out).extra["average"]["method"] == "uniform"
    for force in ([], ["--force"]):
        assert "would take the place of one of its parts" in run(*parts, "-o", parts[1], *force).output
