"""Vela, Arm's compiler, as a process of its own: what it made, what it says of each operator, and its figures.

It runs as a process because it says why an operator is not for the NPU on its standard output alone, and because a
compiler that is killed for memory then takes no export with it. See docs/decisions/ethos-u.md.

Source: the command line and the debug database of ethos-u-vela 5.2.
"""

import csv
import io
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.etree.ElementTree import parse

from detloom.errors import ExportError
from detloom_plugins.ethos_u.machines import Machine

__all__ = ["VERSIONS", "Compiled", "Part", "compile_model", "vela_version"]

PACKAGE = "ethos-u-vela"
VERSIONS = ("5.1", "5.2")
"""Whose database and words are known to be those that are read here."""
BUNDLED_CONFIG = "Arm/vela.ini"
# What Vela calls an operator that it leaves to the host processor.
PASSED_ON = "Passthrough"
COMPLAINT = re.compile(r"^Warning \(supported operators\) operator: \w+, ofm: '(.*)'$")
FAILURE = re.compile(r"^[\w.]*Error: (.*)\Z", re.MULTILINE | re.DOTALL)
KIB = 1024


@dataclass(frozen=True, slots=True)
class Part:
    """One operator that Vela made of one of the file's.

    Attributes:
        operator: What Vela calls it.
        output: Name of the tensor that it writes.
        cycles: Estimated; of what the host processor does there is no estimate.
        kernel: Larger side of its window.
        is_on_npu: Whether the NPU runs it.
        is_chained: Whether it is done on the way out of another, as an activation is.
    """

    operator: str
    output: str
    cycles: int
    kernel: int
    is_on_npu: bool
    is_chained: bool


@dataclass(frozen=True, slots=True)
class Compiled:
    """What Vela made of a file.

    Attributes:
        content: The file for the device.
        parts: By the index of the file's operator; none of what was folded into others.
        complaints: Why an operator is not for the NPU, by the tensor that it writes.
        figures: Estimates for the whole network, by name with unit.
        arena_kib: What its working memory may take of the SRAM, or the cache in it, by the memory mode or as asked for.
    """

    content: bytes
    parts: Mapping[int, Sequence[Part]]
    complaints: Mapping[str, str]
    figures: Mapping[str, float]
    arena_kib: float


def vela_version() -> str:
    """Return the version that is installed."""
    return version(PACKAGE)


def compile_model(content: bytes, machine: Machine) -> Compiled:
    """Compile an int8 LiteRT file.

    Raises:
        ExportError: Vela cannot compile it; with its own words.
    """
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model.tflite").write_bytes(content)
        said = _run(folder, machine)
        tables = _tables(folder / "out" / "model_debug.xml")
        (summary,) = (folder / "out").glob("model_summary_*.csv")
        (row,) = csv.DictReader(io.StringIO(summary.read_text()))
        return Compiled(
            content=(folder / "out" / "model_vela.tflite").read_bytes(),
            parts=_parts(tables),
            complaints=_complaints(said),
            figures=_figures(row),
            arena_kib=float(row["arena_cache_size"]),
        )


def _run(folder: Path, machine: Machine) -> str:
    """Return what Vela says; its files lie in ``out`` then."""
    command = [
        sys.executable,
        *("-m", "ethosu.vela", "model.tflite"),
        *("--accelerator-config", machine.accelerator),
        *("--config", str(Path(machine.config).absolute()) if machine.config else BUNDLED_CONFIG),
        *("--system-config", machine.system),
        *("--memory-mode", machine.memory),
        *("--optimise", machine.optimise.capitalize()),
        *(() if machine.arena_kib is None else ("--arena-cache-size", str(machine.arena_kib * KIB))),
        *("--enable-debug-db", "--output-dir", "out"),
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603 - a module of the same Python
    if done.returncode:
        failure = FAILURE.search(done.stderr)
        said = " ".join((failure[1] if failure else done.stderr).split()) or f"exit code {done.returncode}"
        raise ExportError(
            f"{machine.accelerator} (system {machine.system}, memory {machine.memory}): Vela {vela_version()} cannot "
            f"compile the network: {said.strip(chr(34))}. Where it names an operator, change the module; where it "
            "names a configuration, change the settings system and memory"
        )
    return done.stdout


def _tables(file: Path) -> Mapping[str, list[dict[str, str]]]:
    """Return the rows of each table of Vela's debug database."""
    root = parse(file).getroot()  # noqa: S314 - the compiler wrote it a moment ago
    return {
        str(table.get("name")): list(csv.DictReader((table.text or "").strip().splitlines()))
        for table in root.iter("table")
    }


def _parts(tables: Mapping[str, list[dict[str, str]]]) -> Mapping[int, Sequence[Part]]:
    index = {row["id"]: int(row["ext_key"]) for row in tables["source"]}
    kernel = {row["id"]: max(int(row["kernel_w"]), int(row["kernel_h"])) for row in tables["optimised"]}
    chained = {row["id"] for row in tables["group"]}
    parts: defaultdict[int, list[Part]] = defaultdict(list)
    for row in tables["perf"]:
        parts[index[row["source_id"]]].append(
            Part(
                row["operator"],
                row["name"],
                int(row["op_cycles"]),
                kernel.get(row["optimised_id"], 1),
                row["operator"] != PASSED_ON,
                row["id"] in chained,
            )
        )
    return dict(parts)


def _complaints(said: str) -> Mapping[str, str]:
    """Return Vela's reasons: what it found, and what it would take.

    A complaint is a line that names the operator, one with what was found, then what would be taken, in one line or as
    a list, whose last line says most.
    """
    found = {}
    for block in _blocks(said.splitlines()):
        named = COMPLAINT.match(block[0])
        if named:
            reason = block[1].removeprefix("Reason: ") if len(block) > 1 else "it does not say why"
            accepted = block[-1].strip().removeprefix("- ") if len(block) > 2 else ""
            found[named[1]] = "; ".join(filter(None, (reason, accepted)))
    return found


def _blocks(lines: Sequence[str]) -> Iterator[list[str]]:
    """Yield the lines of each warning."""
    block: list[str] = []
    for line in (*lines, ""):
        if block and (not line.strip() or line.startswith("Warning")):
            yield block
            block = []
        if line.startswith("Warning") or (block and line.strip()):
            block.append(line)


def _figures(row: Mapping[str, str]) -> Mapping[str, float]:
    return {
        "inference_ms": float(row["inference_time"]) * 1e3,
        "npu_cycles": float(row["cycles_npu"]),
        "total_cycles": float(row["cycles_total"]),
        "macs": float(row["nn_macs"]),
        "sram_kib": float(row["sram_memory_used"]),
        "dram_kib": float(row["dram_memory_used"]),
        "flash_kib": float(row["off_chip_flash_memory_used"]) + float(row["on_chip_flash_memory_used"]),
    }
