"""The report of an export: what was done, what it was measured on, and what is left of the accuracy."""

import hashlib
import importlib.metadata
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from detloom.export.network import Preflight
from detloom.export.pictures import Pictures
from detloom.export.placements import plain
from detloom.export.sensitivity import Sensitivity
from detloom.export.stages import Stage
from detloom.json_values import without_nan
from detloom.reparam import FoldReport

__all__ = [
    "FileFact",
    "Report",
    "Status",
    "digest_of",
    "facts",
    "file_facts",
    "machine",
    "versions",
    "worst_differences",
]

Status = Literal["exported", "refused"]
"""``refused``: too much AP was lost; the report is kept, the files are not."""

ALWAYS = ("detloom", "torch", "numpy")
CPU_INFO = Path("/proc/cpuinfo")
MODEL_NAME = "model name"


@dataclass(frozen=True, slots=True)
class FileFact:
    """One file of an export."""

    name: str
    num_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Report:
    """All that is known of an export.

    Attributes:
        status: Whether the files are there.
        artifact: Name of the artifact's file.
        artifact_sha256: Of its content, in hexadecimal.
        recipe: Name of its recipe.
        target: As it was named.
        exporter: The exporter's name.
        provider: Distribution and version, or file, that it came from.
        settings: What it was built with.
        image_size: Height and width of the input.
        passes: Reparam passes that made the deployed form, in order.
        proof: Worst difference of the deployed form from the trained one by precision, over 1 + magnitude.
        outputs: Names of the raw maps, in order.
        files: What lies in the folder, the device's file first.
        stages: The chain, in order.
        max_drop: AP that may be lost.
        validation: What AP was measured on, in words; nothing where it was not.
        calibration: What the ranges of numbers were found on; None where the exporter needs none.
        comparison: What the raw maps were compared on.
        precise: Layers that keep more than eight bits.
        ranking: The sensitivity scan, where there was one.
        qat_epochs: Epochs of quantisation-aware fine-tuning.
        preflight: What the target does with the network, where it says so.
        notes: Sentences of the exporter and of the export.
        machine: Processor and threads that the times are of.
        versions: Of the packages at work.
    """

    status: Status
    artifact: str
    artifact_sha256: str
    recipe: str
    target: str
    exporter: str
    provider: str
    settings: Mapping[str, Any]
    image_size: tuple[int, int]
    passes: tuple[str, ...]
    proof: Mapping[str, float]
    outputs: tuple[str, ...]
    files: tuple[FileFact, ...]
    stages: tuple[Stage, ...]
    max_drop: float
    validation: str
    calibration: Pictures | None
    comparison: Pictures
    precise: tuple[str, ...]
    ranking: tuple[Sensitivity, ...]
    qat_epochs: int
    preflight: Preflight | None
    notes: tuple[str, ...]
    machine: Mapping[str, str | int]
    versions: Mapping[str, str]

    @property
    def drop(self) -> float | None:
        """Return the AP lost from the first stage to the last exported one, where both were validated."""
        first, last = self.stages[0].ap, self.stages[-1].ap
        return None if first is None or last is None or not self.was_run else first - last

    @property
    def was_run(self) -> bool:
        """Return whether an exported form was run here; without, nothing is known of what the files are worth."""
        return bool(self.stages[-1].fidelities)


def facts(report: Report) -> dict[str, Any]:
    """Return a report as JSON data with stable keys."""
    data: dict[str, Any] = {
        "format": 1,
        **{name: getattr(report, name) for name in ("status", "artifact", "artifact_sha256", "recipe", "target")},
        **{name: getattr(report, name) for name in ("exporter", "provider", "settings", "image_size", "passes")},
        "proof": dict(report.proof),
        "outputs": report.outputs,
        "files": [{"name": each.name, "bytes": each.num_bytes, "sha256": each.sha256} for each in report.files],
        "stages": [_stage(each) for each in report.stages],
        "drop": report.drop,
        "max_drop": report.max_drop,
        "validation": report.validation or None,
        "calibration": None if report.calibration is None else _pictures(report.calibration),
        "comparison": _pictures(report.comparison),
        "precise": report.precise,
        "sensitivity": [asdict(each) for each in report.ranking],
        "qat_epochs": report.qat_epochs,
        "preflight": None if report.preflight is None else plain(report.preflight),
        "notes": report.notes,
        "machine": dict(report.machine),
        "versions": dict(report.versions),
    }
    result: dict[str, Any] = without_nan(data)
    return result


def file_facts(folder: Path, first: Iterable[str] = ()) -> tuple[FileFact, ...]:
    """Return size and digest of the files in a folder, some of them first, the others by name."""
    order = list(first)
    names = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()]
    names.sort(key=lambda name: order.index(name) if name in order else len(order))
    return tuple(FileFact(name, (folder / name).stat().st_size, digest_of(folder / name)) for name in names)


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def worst_differences(fold: FoldReport) -> dict[str, float]:
    """Return the largest difference that a proof found, by precision."""
    found: dict[str, float] = {}
    for each in (*fold.modules, *fold.outputs):
        found[each.precision] = max(found.get(each.precision, 0.0), each.relative)
    return found


def machine() -> dict[str, str | int]:
    """Return what times depend on."""
    name = platform.processor() or platform.machine()
    if CPU_INFO.exists():
        lines = CPU_INFO.read_text(encoding="utf-8").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith(MODEL_NAME)), name)
    return {"processor": name, "torch_threads": torch.get_num_threads()}


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of packages that are at work in every export, and of some beside them."""
    found = {"python": platform.python_version()}
    for name in dict.fromkeys((*ALWAYS, *packages)):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _stage(stage: Stage) -> dict[str, Any]:
    return {
        "name": stage.name,
        "AP": stage.ap,
        "metrics": None if stage.metrics is None else dict(stage.metrics),
        "outputs": [asdict(each) for each in stage.fidelities],
        "latency_ms": stage.latency_ms,
    }


def _pictures(pictures: Pictures) -> dict[str, Any]:
    return {"images": len(pictures), "sha256": pictures.digest, "source": pictures.source}
