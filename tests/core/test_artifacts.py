"""Artifacts come back as the detector they were, and refuse to be anything else."""

import json
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from detloom.artifacts import load_artifact, read_artifact, save_artifact, transfer_
from detloom.assembly import assemble
from detloom.catalogue import bundled_rows
from detloom.detector import Detector
from detloom.durable import read_tensors, write_tensors
from detloom.errors import ArtifactError
from detloom.workshop import Workshop

NAMES = ("cat", "dog", "bird")


@pytest.fixture(scope="module")
def detector() -> Detector:
    torch.manual_seed(0)
    return assemble("yolov7-tiny", names=NAMES)


@pytest.fixture(scope="module")
def artifact(detector: Detector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("artifacts") / "model.safetensors"
    assert detector.recipe is not None
    save_artifact(path, detector, recipe=detector.recipe, names=NAMES, extra={"epoch": 3})
    return path


def changed(artifact: Path, to: Path, **metadata: str) -> Path:
    tensors, old = read_tensors(artifact)
    write_tensors(to, tensors, {**old, **metadata})
    return to


def test_detector_comes_back(detector: Detector, artifact: Path) -> None:
    images_BCHW = torch.rand(1, 3, 64, 64)

    loaded = load_artifact(artifact)

    assert loaded.names == NAMES
    assert not loaded.training
    with torch.no_grad():
        ours, theirs = loaded(images_BCHW), detector.eval()(images_BCHW)
    assert all(one.equal(other) for one, other in zip(ours.lead, theirs.lead, strict=True))


def test_artifact_carries_recipe_and_origin(artifact: Path, detector: Detector) -> None:
    found = read_artifact(artifact)

    assert detector.recipe is not None
    assert found.recipe.tables == detector.recipe.tables
    assert found.recipe.name == "yolov7-tiny"
    assert found.extra == {"epoch": 3}
    assert found.components["backbone.elan"].startswith("detloom ")
    assert found.components["reparam.fuse-bn"].startswith("detloom ")


def test_artifact_is_readable_as_other_files_are(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "other").write_text("")

    assert stat.S_IMODE(artifact.stat().st_mode) == stat.S_IMODE((tmp_path / "other").stat().st_mode)


def test_missing_plugin_is_named_with_what_to_install(artifact: Path, tmp_path: Path) -> None:
    text = read_artifact(artifact).recipe.to_toml().replace('use = "elan"', 'use = "their-backbone"')
    components = json.dumps({"backbone.their-backbone": "their-plugin 1.2"})
    path = changed(artifact, tmp_path / "theirs.safetensors", recipe=text, components=components)

    with pytest.raises(ArtifactError, match=r"their-backbone(.|\n)*Install(.|\n)*their-plugin==1\.2"):
        load_artifact(path, shop=Workshop(rows=bundled_rows(), installed=()))


def test_only_what_is_missing_is_listed_and_each_distribution_once(artifact: Path, tmp_path: Path) -> None:
    held = read_artifact(artifact)
    text = held.recipe.to_toml().replace('use = "elan"', 'use = "theirs"')
    components = {**held.components, "backbone.theirs": "their-plugin 1.2", "assigner.hers": "their-plugin 1.2"}
    path = changed(artifact, tmp_path / "theirs.safetensors", recipe=text, components=json.dumps(components))
    shop = Workshop(rows=bundled_rows(), installed=())

    with pytest.raises(ArtifactError) as caught:
        load_artifact(path, shop=shop)

    assert str(caught.value).splitlines() == [
        f"{path}: the detector of this artifact cannot be assembled here: it has components that are not here",
        "  the assigner 'hers', which came with their-plugin 1.2",
        "  the backbone 'theirs', which came with their-plugin 1.2",
        "  Install: pip install their-plugin==1.2",
    ]


def test_settings_of_another_version_are_told_with_the_versions(artifact: Path, tmp_path: Path) -> None:
    text = read_artifact(artifact).recipe.to_toml().replace('use = "elan"', 'use = "elan"\nolder = 3')
    path = changed(artifact, tmp_path / "older.safetensors", recipe=text)

    with pytest.raises(ArtifactError, match=r"no setting is called 'older'(.|\n)*It was made with: detloom \S+$"):
        load_artifact(path)


def test_weights_that_do_not_fit_the_recipe_are_refused(artifact: Path, tmp_path: Path) -> None:
    tensors, metadata = read_tensors(artifact)
    first = next(iter(tensors))
    tensors["surprise"] = tensors.pop(first)
    write_tensors(tmp_path / "mixed.safetensors", tensors, metadata)

    with pytest.raises(ArtifactError, match=rf"1 new \({first}\), 1 not used \(surprise\)"):
        load_artifact(tmp_path / "mixed.safetensors")


def test_weights_of_other_class_count_are_refused(artifact: Path, tmp_path: Path) -> None:
    path = changed(artifact, tmp_path / "fewer.safetensors", names='["cat"]')

    with pytest.raises(ArtifactError, match="of another shape"):
        load_artifact(path)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_weights_that_are_no_finite_numbers_are_refused_by_name(artifact: Path, tmp_path: Path, wrong: float) -> None:
    tensors, metadata = read_tensors(artifact)
    name = next(name for name in tensors if name.endswith("running_var"))
    tensors[name][0] = wrong
    write_tensors(tmp_path / "broken.safetensors", tensors, metadata)

    # Evaluation, prediction and folding load it; a training that starts from it reads it.
    for take in (load_artifact, read_artifact):
        with pytest.raises(ArtifactError, match=rf"broken\.safetensors: {name} hold infinite numbers or NaN"):
            take(tmp_path / "broken.safetensors")


@pytest.mark.parametrize(
    ("metadata", "complaint"),
    [
        ({"names": "3"}, "class names must be an array of text"),
        ({"names": "[]"}, "class names must be an array of text"),
        ({"names": '["a"'}, "metadata cannot be read"),
        ({"recipe": "= ="}, "metadata cannot be read"),
        ({"recipe": "a = " + "[" * 5000}, "metadata cannot be read"),
        ({"format": "99"}, "format '99'"),
        ({"components": "[]"}, "metadata is damaged"),
        ({"extra": "[]"}, "metadata is damaged"),
    ],
)
def test_damaged_metadata_is_refused(artifact: Path, tmp_path: Path, metadata: dict[str, str], complaint: str) -> None:
    path = changed(artifact, tmp_path / "damaged.safetensors", **metadata)

    with pytest.raises(ArtifactError, match=complaint):
        load_artifact(path)


def test_other_safetensors_files_are_no_artifacts(tmp_path: Path) -> None:
    save_file({"weights": torch.ones(2)}, tmp_path / "plain.safetensors")

    with pytest.raises(ArtifactError, match="carries no recipe"):
        load_artifact(tmp_path / "plain.safetensors")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a pickle in a zip", b"\xff" * 100])
def test_foreign_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)

    with pytest.raises(ArtifactError, match="no whole safetensors file"):
        load_artifact(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("my.toml", "this is a recipe, and an artifact with trained weights is needed, such as RUN/best.safetensors"),
        ("my.recipe", "this is a text file, perhaps a recipe, and an artifact"),
    ],
)
def test_file_of_a_recipe_in_place_of_an_artifact_is_told_so(tmp_path: Path, name: str, complaint: str) -> None:
    # The 256th byte, where reading ends, halves a letter.
    (tmp_path / name).write_text('extends = "demo"\n#'.ljust(255) + "äöü\n", encoding="utf-8")

    with pytest.raises(ArtifactError, match=complaint) as caught:
        load_artifact(tmp_path / name)

    assert "bytes of header" not in str(caught.value)


@pytest.mark.parametrize(("name", "other"), [("best", "last"), ("last", "best"), ("soup", "last")])
def test_artifact_that_was_cut_short_has_a_next_step(artifact: Path, tmp_path: Path, name: str, other: str) -> None:
    path = tmp_path / f"{name}.safetensors"
    path.write_bytes(artifact.read_bytes()[:-8])

    with pytest.raises(ArtifactError, match="no whole safetensors file") as caught:
        load_artifact(path)

    assert f"take another copy of it, or the {other}.safetensors of the run" in str(caught.value)


def test_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="there is no such file"):
        load_artifact(tmp_path / "model.safetensors")


def test_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="this is a folder, and an artifact is a file"):
        load_artifact(tmp_path)


def test_folder_of_a_run_is_told_its_best_artifact(tmp_path: Path) -> None:
    (tmp_path / "best.safetensors").touch()

    with pytest.raises(ArtifactError, match=r"Did you mean \S+best\.safetensors\?"):
        load_artifact(tmp_path)


def test_recipe_in_place_of_an_artifact_is_told_so() -> None:
    with pytest.raises(ArtifactError, match="yolov7-tiny: this is a recipe, and an artifact"):
        load_artifact("yolov7-tiny")


def test_missing_directory_is_told_when_writing(detector: Detector, tmp_path: Path) -> None:
    assert detector.recipe is not None

    with pytest.raises(ArtifactError, match="cannot be written"):
        save_artifact(tmp_path / "no/model.safetensors", detector, recipe=detector.recipe, names=NAMES)


def test_other_class_count_takes_everything_but_the_last_layers(artifact: Path) -> None:
    torch.manual_seed(1)
    other = assemble("yolov7-tiny", num_classes=7)
    before = other.head.state_dict()

    transfer = transfer_(other, read_artifact(artifact))

    assert transfer.missing == transfer.unused == ()
    assert transfer.reshaped
    assert all(name.startswith("head.") for name in transfer.reshaped)
    assert len(transfer.taken) + len(transfer.reshaped) == len(other.state_dict())
    assert "of another shape (head." in str(transfer)
    assert before.keys() == other.head.state_dict().keys()


def test_another_architecture_gives_nothing(artifact: Path) -> None:
    with pytest.raises(ArtifactError, match="not one tensor fits"):
        transfer_(torch.nn.Linear(2, 2), read_artifact(artifact))
