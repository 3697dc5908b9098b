"""Exports from beginning to end, with an exporter that plays eight bits in torch."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from export_cases import PLUGIN, small_artifact, small_data
from torch import Tensor

from detloom.artifacts import load_artifact, save_artifact
from detloom.data.splits import open_split
from detloom.engine.evaluate import detect_split
from detloom.errors import DetloomError, ExportError, PluginError
from detloom.export.network import Placement
from detloom.export.pipeline import export, preflight
from detloom.export.report import Report
from detloom.recipe import load_recipe
from detloom.workshop import workshop


@pytest.fixture(scope="module", autouse=True)
def own_workshop() -> Iterator[None]:
    """Leave the file's exporter to this module."""
    workshop.cache_clear()
    workshop().load_file(PLUGIN)
    yield
    workshop.cache_clear()


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("room")
    small_artifact(folder / "best.safetensors")
    small_data(folder / "data")
    return folder


def run(room: Path, out: Path | None, **settings: Any) -> tuple[Path, Report]:
    given = {"target": "trial-board", "data": room / "data", "calibration": 3, **settings}
    return export(room / "best.safetensors", out=out, **given)


@pytest.fixture(scope="module")
def done(room: Path) -> tuple[Path, Report]:
    return run(room, None, mixed=2)


def test_folder_lies_beside_the_artifact_and_holds_what_a_device_and_a_host_need(
    done: tuple[Path, Report], room: Path
) -> None:
    folder, report = done

    assert folder == room / "best-trial-board"
    names = {path.name for path in folder.iterdir()}
    assert {
        "weights.bin",
        "best-trial-board.host.json",
        "best_trial_board_decoder.py",
        "report.json",
        "report.md",
    } <= names
    assert {each.name for each in report.files} == names - {"report.json", "report.md"}
    assert report.files[0].name == "weights.bin"
    assert json.loads((folder / "best-trial-board.host.json").read_text())["names"] == [
        "coin",
        "die",
        "key",
        "leaf",
        "mug",
    ]


def test_chain_goes_from_the_trained_form_to_the_chips_arithmetic(done: tuple[Path, Report]) -> None:
    _, report = done

    assert [each.name for each in report.stages] == ["trained", "folded", "float", "simulator"]
    assert all(each.ap is not None for each in report.stages)
    trained, folded, real, simulated = report.stages
    assert real.fidelities[0].sqnr_db > 100 > simulated.fidelities[0].sqnr_db > 5
    assert not trained.fidelities + folded.fidelities
    assert simulated.latency_ms is None
    assert real.latency_ms is not None


def test_report_holds_the_conditions_of_the_numbers(done: tuple[Path, Report]) -> None:
    folder, report = done

    facts = json.loads((folder / "report.json").read_text())

    assert facts["status"] == "exported"
    assert facts["calibration"]["images"] == 3
    assert len(facts["calibration"]["sha256"]) == 64
    assert facts["image_size"] == [64, 64]
    assert facts["passes"] == ["drop-auxiliary", "merge-repconv", "fold-implicit", "fuse-bn"]
    assert facts["proof"].keys() == {"float64", "float32"}
    assert facts["versions"].keys() == {"python", "detloom", "torch", "numpy", "safetensors"}
    assert facts["provider"].startswith("file trial_exporter.py, sha256 ")
    assert facts["outputs"] == ["stride8", "stride16", "stride32"]
    assert facts["preflight"]["counts"] == {"npu": 35, "split": 0, "cpu": 23, "refused": 0}
    assert facts["precise"] == [each["module"] for each in facts["sensitivity"][:2]] == list(report.precise)


def test_report_reads_as_a_page(done: tuple[Path, Report]) -> None:
    text = (done[0] / "report.md").read_text()

    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert headings == [
        "# best.safetensors on trial-board",
        "## Accuracy",
        "## Raw outputs",
        "## On the device",
        "## Files",
        "## Quantisation",
        "## How it was made",
    ]
    assert "| `simulator` | the device's arithmetic, played here |" in text
    assert "| cpu | only 1x1 fits | take 1x1 | `backbone.stem.0.conv` CONV, 900 (" in text
    assert "58 operators: 35 on the NPU, 23 on the CPU." in text


def test_exported_form_is_decoded_and_evaluated_as_the_detector_is(room: Path) -> None:
    detector = load_artifact(room / "best.safetensors").fuse()
    annotations = open_split(room / "data", "val")
    assert detector.recipe is not None
    recipe = load_recipe(detector.recipe, {"predict.rectangular": False})
    sizes = []

    def forward(images_BCHW: Tensor) -> tuple[Tensor, ...]:
        sizes.append(tuple(images_BCHW.shape))
        lead: tuple[Tensor, ...] = detector(images_BCHW).lead
        return lead

    own, other = (detect_split(detector, annotations, recipe, forward=each) for each in (None, forward))

    assert sizes == [(2, 3, 64, 64)]
    assert len(own[0])
    for index, found in own.items():
        assert torch.equal(found.boxes_N4, other[index].boxes_N4)
        assert torch.equal(found.scores_N, other[index].scores_N)


def test_too_much_lost_keeps_the_report_and_not_the_model(room: Path, tmp_path: Path) -> None:
    out = tmp_path / "export"

    with pytest.raises(
        ExportError, match=r"AP is lost .* more than --max-drop -1: trained 0\.\d+, folded 0\.\d+, float"
    ):
        run(room, out, max_drop=-1.0)

    assert sorted(path.name for path in out.iterdir()) == ["report.json", "report.md"]
    assert json.loads((out / "report.json").read_text())["status"] == "refused"
    assert "**Refused**" in (out / "report.md").read_text()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"settings": {"fault": "half a file"}}, "the compiler does not take this"),
        ({"settings": {"fault": "shapes"}}, r"the exporter 'trial' returned 'stride8' of shape \[1, 1, 1, 1\]"),
        ({"passes": ("fuse-bm",)}, r"--pass: .* Did you mean 'fuse-bn'"),
        ({"mixed": ("backbone.stm",)}, r"--mixed backbone\.stm: .* Did you mean 'backbone.stem'"),
        ({"image_size": 65}, "--image-size: image_size is 65 x 65, but this detector needs multiples"),
    ],
)
def test_nothing_is_left_where_something_fails(
    room: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises((DetloomError, PluginError), match=message):
        run(room, tmp_path / "export", validate=False, **settings)

    assert list(tmp_path.iterdir()) == []


def test_what_can_fail_comes_before_the_long_measuring(room: Path, tmp_path: Path) -> None:
    said: list[str] = []

    with pytest.raises(ExportError, match="the compiler does not take this"):
        run(room, tmp_path / "export", target="broken-board", said=said.append)

    assert not [each for each in said if "measuring" in each]


def test_pass_that_was_asked_for_and_changes_nothing_is_told(room: Path, tmp_path: Path) -> None:
    _, report = run(room, tmp_path / "export", passes=("square", "equalise"), validate=False)

    assert [each for each in report.notes if "pass" in each] == ["The pass 'square' found nothing to change."]


def test_without_data_it_is_said_what_data_is_needed_for(room: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError) as caught:
        run(room, tmp_path / "export", data=None, mixed=2, qat_epochs=1)

    for reason in (
        "finds the ranges of numbers",
        "--qat-epochs learns",
        "--mixed with a number",
        "the AP that is left",
    ):
        assert reason in str(caught.value)


def test_network_that_is_folded_already_begins_its_chain_there_and_fine_tuning_adds_a_stage(
    room: Path, tmp_path: Path
) -> None:
    trained = load_artifact(room / "best.safetensors")
    assert trained.recipe is not None
    passes = ["drop-auxiliary", "merge-repconv", "fold-implicit", "fuse-bn"]
    folded = tmp_path / "folded.safetensors"
    save_artifact(folded, trained.fuse(), recipe=trained.recipe, names=trained.names, folded=passes)

    _, report = export(
        folded,
        target="trial",
        data=room / "data",
        calibration=2,
        qat_epochs=1,
        settings={"fault": "no runners"},
        validate=False,
        image_size=(64, 96),
    )

    assert [each.name for each in report.stages] == ["folded", "fine-tuned"]
    assert report.drop is None
    assert "Nothing here can run the files" in (tmp_path / "folded-trial" / "report.md").read_text()


def test_preflight_of_a_recipe_needs_no_weights_and_no_data() -> None:
    found = preflight("yolov7-tiny", target="trial-board", image_size=64, settings={"refuse": "backbone.stem.1.conv"})

    assert [each.module for each in found.at(Placement.REFUSED)] == ["backbone.stem.1.conv"]


def test_preflight_is_of_the_network_with_its_precise_modules() -> None:
    with pytest.raises(ExportError, match=r"--mixed backbone\.stm: .* Did you mean 'backbone.stem'"):
        preflight("demo", target="trial", image_size=64, mixed=("backbone.stm",))

    found = preflight("demo", target="trial", image_size=64, mixed=("backbone.stem",))

    assert [each.module for each in found.verdicts if each.operator == "CONV_FLOAT"] == [
        "backbone.stem.0.conv",
        "backbone.stem.1.conv",
    ]
    assert len(found.verdicts) == 58
