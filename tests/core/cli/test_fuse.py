"""``detloom fuse``: proved, written, read back; or nothing is written."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

from detloom.artifacts import load_artifact, read_artifact, save_artifact
from detloom.assembly import assemble
from detloom.cli import cli
from detloom.detector import Detector
from detloom.errors import ArtifactError
from detloom.interfaces import Fold
from detloom_plugins.fold_implicit import FoldImplicitPass

NAMES = ("cup", "saucer")
NARROW_NECK = {"neck.widths": [8] * 3, "neck.hidden": [8] * 3, "neck.outputs": [8] * 3}


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["fuse", *arguments])


@pytest.fixture
def artifact(tmp_path: Path, excite_: Callable[[nn.Module], nn.Module]) -> Path:
    detector = assemble("demo", names=NAMES)
    excite_(detector)
    assert detector.recipe is not None
    path = tmp_path / "best.safetensors"
    save_artifact(path, detector, recipe=detector.recipe, names=NAMES)
    return path


def test_folded_artifact_loads_as_it_is_and_predicts_the_same(artifact: Path, tmp_path: Path) -> None:
    out = tmp_path / "deployed.safetensors"

    result = run(str(artifact), "-o", str(out), "--size", "96")

    assert result.exit_code == 0, result.output
    assert read_artifact(out).folded == ("drop-auxiliary", "merge-repconv", "fold-implicit", "fuse-bn")
    trained, deployed = load_artifact(artifact), load_artifact(out)
    assert not any(isinstance(each, nn.BatchNorm2d) for each in deployed.modules())
    images_BCHW = torch.rand(1, 3, 96, 64)
    with torch.inference_mode():
        found, expected = deployed.predictions(images_BCHW), trained.predictions(images_BCHW)
    torch.testing.assert_close(found.boxes_BP4, expected.boxes_BP4, rtol=1e-4, atol=1e-3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.safetensors", "deployed.safetensors"]


def test_place_that_cannot_be_written_is_told_without_a_temporary_name(artifact: Path, tmp_path: Path) -> None:
    result = run(str(artifact), "-o", str(tmp_path / "no/deployed.safetensors"), "--size", "64")

    assert result.exit_code == 2
    assert f"{tmp_path}/no/deployed.safetensors: cannot be written: no such file or directory" in result.output
    assert "unread" not in result.output
    assert f"Make the folder {tmp_path}/no" in result.output


def test_proof_is_printed_for_outputs_and_modules(artifact: Path) -> None:
    result = run(str(artifact), "--size", "64")

    assert result.exit_code == 0, result.output
    assert "fuse-bn: folds 55, leaves 0" in result.output
    assert "proved on 2 drawn pictures, 64 pixels wide" in result.output
    assert "output.boxes_in_cells  float64" in result.output
    assert "folded modules: 58, the worst 8 measurements" in result.output
    assert "equal within the tolerances; --out writes the deployed form" in result.output


def test_json_has_the_documented_keys(artifact: Path) -> None:
    facts = json.loads(run(str(artifact), "--size", "64", "--json").stdout)

    assert set(facts) == {"folds", "warnings", "parameters", "outputs", "modules", "pictures", "artifact"}
    assert facts["parameters"]["after"] < facts["parameters"]["before"]
    assert set(facts["outputs"][0]) == {"where", "precision", "absolute", "relative", "tolerance"}
    assert facts["pictures"] == "2 drawn pictures, 64 pixels wide"


def test_wrong_fold_names_the_module_and_writes_nothing(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = FoldImplicitPass.fold

    def wrong(self: FoldImplicitPass, module: nn.Module, fold: Fold) -> nn.Module:
        conv = right(self, module, fold)
        if fold.path == "head.lead.1":
            conv.get_parameter("bias").data += 0.01
        return conv

    monkeypatch.setattr(FoldImplicitPass, "fold", wrong)

    result = run(str(artifact), "-o", str(tmp_path / "deployed.safetensors"), "--size", "64")

    assert result.exit_code == 2
    assert "folding changed the module head.lead.1: in float64 it differs by 0.01" in result.output
    assert "It was folded by fold-implicit" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["best.safetensors"]


def test_plan_of_a_recipe_needs_no_weights() -> None:
    result = run("yolov7", "--plan")

    assert result.exit_code == 0, result.output
    assert "merge-repconv: folds 3, leaves 0" in result.output
    assert "  folds  neck.outputs.0: 3x3 + 1x1 into one 3x3" in result.output


def test_other_passes_can_be_named(artifact: Path) -> None:
    facts = json.loads(run(str(artifact), "--plan", "--pass", "fuse-bn", "--json").stdout)

    assert {each["pass"] for each in facts["folds"]} == {"fuse-bn"}


def test_forms_for_chips_are_written_and_read_back(tmp_path: Path) -> None:
    artifact, out = tmp_path / "narrow.safetensors", tmp_path / "chip.safetensors"
    detector = assemble("demo", {"backbone.widths": [8] * 4, "backbone.hidden": [8] * 4, **NARROW_NECK}, names=NAMES)
    assert detector.recipe is not None
    save_artifact(artifact, detector, recipe=detector.recipe, names=NAMES)
    names = ("drop-auxiliary", "merge-repconv", "fold-implicit", "fuse-bn", "equalise", "spp-cascade", "raw-outputs")

    result = run(str(artifact), "-o", str(out), "--size", "64", *(part for each in names for part in ("--pass", each)))

    assert result.exit_code == 0, result.output
    assert "raw-outputs: folds 1, leaves 0" in result.output
    assert read_artifact(out).folded == names
    trained, deployed = load_artifact(artifact), load_artifact(out)
    images_BCHW = torch.rand(1, 3, 96, 64)
    with torch.inference_mode():
        found, expected = deployed.predictions(images_BCHW), trained.predictions(images_BCHW)
        assert [raw.shape[1] for raw in deployed(images_BCHW).lead] == [12, 3, 6] * 3
    torch.testing.assert_close(found.boxes_BP4, expected.boxes_BP4, rtol=1e-4, atol=1e-3)


def test_recipe_without_weights_is_refused() -> None:
    result = run("yolov7-tiny")

    assert result.exit_code == 2
    assert "only an artifact has weights to fold" in result.output
    assert "such as RUN/best.safetensors" in result.output


def test_folded_artifact_is_not_folded_again(artifact: Path, tmp_path: Path) -> None:
    out = tmp_path / "deployed.safetensors"
    run(str(artifact), "-o", str(out), "--size", "64")

    result = run(str(out))

    assert result.exit_code == 2
    assert "is folded already" in result.output


def test_training_form_is_not_overwritten(artifact: Path) -> None:
    before = artifact.read_bytes()

    result = run(str(artifact), "-o", str(artifact.parent / ".." / artifact.parent.name / artifact.name))

    assert result.exit_code == 2
    assert "would take the place of the training form" in result.output
    assert artifact.read_bytes() == before


def test_file_that_exists_is_left_alone_unless_forced(artifact: Path, tmp_path: Path) -> None:
    out = tmp_path / "deployed.safetensors"
    out.write_text("mine")

    refused = run(str(artifact), "-o", str(out), "--size", "64")

    assert refused.exit_code == 2
    assert f"{out}: there is a file of that name; --force takes its place" in refused.output
    assert out.read_text() == "mine"
    assert run(str(artifact), "-o", str(out), "--plan").exit_code == 0
    forced = run(str(artifact), "-o", str(out), "--size", "64", "--force")
    assert forced.exit_code == 0, forced.output
    assert read_artifact(out).folded
    own = run(str(artifact), "-o", str(artifact), "--force")
    assert "would take the place of the training form" in own.output


def test_objectness_is_read_back_too(artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from detloom_plugins.anchor_head import AnchorHead

    def other_objectness(path: Path, *, plugins: Sequence[Path] = ()) -> Detector:
        detector = load_artifact(path, plugins=plugins)
        head = detector.head
        assert isinstance(head, AnchorHead)
        outputs = len(NAMES) + 5
        if Path(path) != artifact:
            head.lead[0].get_parameter("bias").data[4::outputs] += 1
        return detector

    monkeypatch.setattr("detloom.artifacts.load_artifact", other_objectness)

    result = run(str(artifact), "-o", str(tmp_path / "deployed.safetensors"), "--size", "64")

    assert result.exit_code == 2
    assert "read back, the artifact gives other outputs" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["best.safetensors"]


def test_pictures_of_ones_own_are_used_and_bad_ones_named(artifact: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no picture")

    result = run(str(artifact), "--images", str(bad))

    assert result.exit_code == 2
    assert "bad.jpg" in result.output


@pytest.mark.parametrize("folded", [{"a": 1}, [3], [{"name": "x"}]])
def test_damaged_list_of_passes_is_named(folded: object, artifact: Path) -> None:
    from detloom.durable import read_tensors, write_tensors

    tensors, metadata = read_tensors(artifact)
    write_tensors(artifact, tensors, metadata | {"folded": json.dumps(folded)})

    with pytest.raises(ArtifactError, match="folded must be an array of passes"):
        read_artifact(artifact)


def test_detector_of_a_folded_artifact_folds_to_itself(artifact: Path, tmp_path: Path) -> None:
    out = tmp_path / "deployed.safetensors"
    run(str(artifact), "-o", str(out), "--size", "64")

    detector = load_artifact(out)

    assert isinstance(detector.fuse(), Detector)
    assert detector.fuse().state_dict().keys() == detector.state_dict().keys()
