"""Reports: what they conclude, as JSON and as a page."""

import json
import math
from dataclasses import replace

import pytest
import torch

from detloom.export.fidelity import Fidelity
from detloom.export.markdown import markdown, sqnr_text, where_text
from detloom.export.network import Placement, Preflight, Verdict
from detloom.export.pictures import Pictures
from detloom.export.report import FileFact, Report, facts, machine, versions
from detloom.export.stages import Stage

PICTURES = Pictures(torch.zeros(2, 3, 4, 4), ("a", "b"), "5" * 64, "2 of 9 pictures of data, seed 0")
TRUE = (Fidelity("stride8", math.inf, 0.0, 2.0), Fidelity("stride16", 31.44, 0.25, 4.0))


def stage(name: str, ap: float | None, fidelities: tuple[Fidelity, ...] = ()) -> Stage:
    metrics = None if ap is None else {"AP": ap, "AP50": 0.5, "APs": math.nan}
    return Stage(name, metrics, fidelities, 1.5 if fidelities else None)


REPORT = Report(
    status="exported",
    artifact="best.safetensors",
    artifact_sha256="0" * 64,
    recipe="demo",
    target="board",
    exporter="mine",
    provider="mine 1.0",
    settings={"bits": 8},
    image_size=(64, 96),
    passes=("fuse-bn",),
    proof={"float64": 1e-14},
    outputs=("stride8", "stride16"),
    files=(FileFact("model.bin", 2**20, "1" * 64),),
    stages=(stage("trained", 0.5), stage("folded", 0.5), stage("int8", 0.4925, TRUE)),
    max_drop=0.01,
    validation="9 pictures of data",
    calibration=PICTURES,
    comparison=PICTURES,
    precise=(),
    ranking=(),
    qat_epochs=0,
    preflight=None,
    notes=("a note",),
    machine={"processor": "mine", "torch_threads": 1},
    versions={"torch": "2.0"},
)


def test_drop_is_from_the_first_stage_to_the_last_exported_one() -> None:
    assert REPORT.drop == pytest.approx(0.0075)


def test_drop_is_not_known_where_nothing_was_run_or_validated() -> None:
    assert replace(REPORT, stages=REPORT.stages[:2]).drop is None
    assert replace(REPORT, stages=(stage("folded", None), stage("int8", None, TRUE))).drop is None


def test_json_has_stable_keys_and_no_number_that_it_cannot_hold() -> None:
    data = json.loads(json.dumps(facts(REPORT), allow_nan=False))

    assert list(data) == [
        "format",
        "status",
        "artifact",
        "artifact_sha256",
        "recipe",
        "target",
        "exporter",
        "provider",
        "settings",
        "image_size",
        "passes",
        "proof",
        "outputs",
        "files",
        "stages",
        "drop",
        "max_drop",
        "validation",
        "calibration",
        "comparison",
        "precise",
        "sensitivity",
        "qat_epochs",
        "preflight",
        "notes",
        "machine",
        "versions",
    ]
    last = data["stages"][-1]
    assert set(last) == {"name", "AP", "metrics", "outputs", "latency_ms"}
    assert last["metrics"]["APs"] is None
    assert last["outputs"][0] == {"output": "stride8", "sqnr_db": None, "largest_error": 0.0, "peak": 2.0}
    assert data["calibration"] == {"images": 2, "sha256": "5" * 64, "source": PICTURES.source}


def test_page_says_what_is_lost_and_where() -> None:
    text = markdown(REPORT)

    assert "**0.0075 AP is lost** from the first stage to the last; at most 0.01 may be lost." in text
    assert "input 96 x 64 pixels" in text
    assert "| `int8` | the file in integers, run here | 0.4925 | 0.5000 |  | -0.0075 | 1.5 |" in text
    assert "| `stride8` | exact, 0 of 2 |" in text
    assert "| `stride16` | 31.4 dB, 0.25 of 4 |" in text
    assert "| `model.bin` | 1.000 MiB |" in text
    assert "- settings: `bits = 8`" in text
    assert text.endswith("- a note\n")


@pytest.mark.parametrize(
    ("report", "sentence"),
    [
        (replace(REPORT, status="refused"), "**Refused**: 0.0075 AP is lost from the first stage to the last, and at "),
        (replace(REPORT, status="refused"), "they are not in this folder"),
        (replace(REPORT, stages=REPORT.stages[:2]), "**Nothing here can run the files**"),
        (replace(REPORT, stages=(stage("folded", None), stage("int8", None, TRUE))), "**AP was not measured**"),
        (replace(REPORT, stages=(stage("folded", 0.4), stage("int8", 0.5, TRUE))), "**0.1000 AP is gained**"),
        (replace(REPORT, precise=("stem.0",), qat_epochs=2), "More than eight bits: `stem.0`."),
    ],
)
def test_page_says_how_it_ended(report: Report, sentence: str) -> None:
    assert sentence in markdown(report)


def test_modules_that_leave_the_npu_for_one_reason_share_a_line() -> None:
    verdicts = [Verdict(name, "A|B", Placement.CPU, "too wide", "take less", 5) for name in ("stem", "neck")]
    report = replace(
        REPORT, preflight=Preflight("board", "a compiler", tuple(verdicts), {"sram_kib": 1234.5, "cycles": 1.5e7})
    )

    text = markdown(report)

    line = "| cpu | too wide | take less | `stem` A\\|B, 5 (50.0%) cycles<br>`neck` A\\|B, 5 (50.0%) cycles |"
    assert line in text
    assert "| `sram_kib` | 1,234.5 |\n| `cycles` | 15,000,000 |" in text
    assert "By a compiler. 2 operators: 0 on the NPU, 2 on the CPU." in text


@pytest.mark.parametrize(
    ("placements", "text"),
    [
        ((), "no operator is refused"),
        ((Placement.REFUSED,), "1 operator: 1 refused"),
        ((Placement.CPU, Placement.REFUSED), "2 operators: 0 on the NPU, 1 on the CPU, 1 refused"),
    ],
)
def test_format_that_is_no_chip_speaks_of_what_it_refuses_alone(placements: tuple[Placement, ...], text: str) -> None:
    verdicts = tuple(Verdict("stem", "CONV", each) for each in placements)

    assert where_text(Preflight("format", "a table", verdicts)) == text


@pytest.mark.parametrize(
    ("decibels", "text"), [(math.inf, "exact"), (-math.inf, "-inf dB"), (math.nan, "nan dB"), (20.04, "20.0 dB")]
)
def test_no_noise_alone_is_exact(decibels: float, text: str) -> None:
    assert sqnr_text(decibels) == text


def test_versions_are_those_of_what_is_installed() -> None:
    found = versions(("safetensors", "no-such-distribution"))

    assert list(found) == ["python", "detloom", "torch", "numpy", "safetensors"]


def test_machine_has_a_name_and_threads() -> None:
    found = machine()

    assert found["processor"]
    assert found["torch_threads"] == torch.get_num_threads()
