"""The report of an export as Markdown."""

import math
from collections.abc import Iterable, Iterator, Sequence

from detloom.export.network import Placement, Preflight
from detloom.export.placements import Row, counted, rows_of, share_of_cycles
from detloom.export.report import Report
from detloom.export.stages import SIMULATOR, TRAINED, Stage

__all__ = ["cycles_text", "figure_text", "markdown", "sqnr_text", "where_text"]

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")
MOST_RANKED = 10
MEBI = 2**20
ABOUT = {
    TRAINED: "the training form",
    "folded": "after all passes, in torch",
    "fine-tuned": "after the quantisation-aware fine-tuning, in torch",
    "float": "the file in float, run here",
    "int8": "the file in integers, run here",
    SIMULATOR: "the device's arithmetic, played here",
}


def markdown(report: Report) -> str:
    """Return the text of ``report.md``."""
    height, width = report.image_size
    parts = [
        f"# {report.artifact} on {report.target}",
        f"Recipe `{report.recipe}`, input {width} x {height} pixels, by `{report.exporter}` ({report.provider}).",
        _outcome(report),
        *_accuracy(report),
        *_fidelity(report),
        *_preflight(report.preflight),
        *_files(report),
        *_bits(report),
        *_conditions(report),
    ]
    return "\n\n".join(parts) + "\n"


def sqnr_text(decibels: float) -> str:
    """Return a ratio in decibels, or that there is no noise."""
    return "exact" if decibels == math.inf else f"{decibels:.1f} dB"


def cycles_text(row: Row, preflight: Preflight) -> str:
    """Return estimated cycles and their share of all, or nothing where they are not known."""
    share = share_of_cycles(row, preflight)
    if row.cycles is None:
        return ""
    return f"{row.cycles:,}" + ("" if share is None else f" ({share:.1%})")


def figure_text(value: float) -> str:
    """Return an estimate without more digits than it is worth, and without exponents."""
    return f"{value:,.0f}" if abs(value) >= 1e5 or value == int(value) else f"{value:,.5g}"


def where_text(preflight: Preflight) -> str:
    """Return in words how many operators run where; a format that is no chip speaks of what it refuses alone."""
    if not preflight.verdicts:
        return "no operator is refused"
    counts = counted(preflight)
    words = {
        Placement.NPU: "on the NPU",
        Placement.SPLIT: "on the NPU in parts",
        Placement.CPU: "on the CPU",
        Placement.REFUSED: "refused",
    }
    total = sum(counts.values())
    shown = [
        place for place in words if counts[place] or (place == Placement.NPU and counts[Placement.REFUSED] < total)
    ]
    said = [f"{counts[place]} {words[place]}" for place in shown]
    return f"{total} {'operator' if total == 1 else 'operators'}: {', '.join(said)}"


def _outcome(report: Report) -> str:
    drop, limit = report.drop, report.max_drop
    if report.status == "refused":
        return (
            f"**Refused**: {drop:.4f} AP is lost from the first stage to the last, and at most {limit:g} may be. "
            "The files were not kept."
        )
    if not report.was_run:
        return (
            "**Nothing here can run the files**, so what they are worth was not measured: the chain ends with the "
            "form in torch that they were made of."
        )
    if drop is None:
        return "**AP was not measured**; what is left of it is not known."
    verb = "lost" if drop >= 0 else "gained"
    return f"**{abs(drop):.4f} AP is {verb}** from the first stage to the last; at most {limit:g} may be lost."


def _accuracy(report: Report) -> Iterator[str]:
    yield "## Accuracy"
    if report.validation:
        yield (
            f"On {report.validation}, every picture fitted on the whole canvas, so that all stages see the same. "
            "`detloom val` cuts the canvas to the pictures where the recipe says so, and may find a little else."
        )
    names = [name for name in METRICS if any(name in (each.metrics or {}) for each in report.stages)]
    first = report.stages[0].ap
    rows = [
        [
            f"`{each.name}`",
            ABOUT.get(each.name, "as the exporter calls it"),
            *(_number((each.metrics or {}).get(name)) for name in names),
            *([_change(each, first)] if names else []),
            "" if each.latency_ms is None else f"{each.latency_ms:.1f}",
        ]
        for each in report.stages
    ]
    yield _table(["stage", "what it is", *names, *(["AP change"] if names else []), "ms a picture"], rows)
    processor, threads = report.machine["processor"], report.machine["torch_threads"]
    yield (
        f"Times are medians of one picture at a time, warm, on this machine ({processor}; torch has {threads} "
        f"{'thread' if threads == 1 else 'threads'}), and say nothing of the device."
    )


def _fidelity(report: Report) -> Iterator[str]:
    measured = [each for each in report.stages if each.fidelities]
    if not measured:
        return
    yield "## Raw outputs"
    yield (
        "Signal over quantisation noise, and the largest error beside the largest value, against the network in float "
        f"on {report.comparison.source}."
    )
    rows = [
        [
            f"`{output}`",
            *(
                f"{sqnr_text(stage.fidelities[index].sqnr_db)}, {stage.fidelities[index].largest_error:.3g} of "
                f"{stage.fidelities[index].peak:.3g}"
                for stage in measured
            ),
        ]
        for index, output in enumerate(report.outputs)
    ]
    yield _table(["output", *(f"`{each.name}`" for each in measured)], rows)


def _preflight(preflight: Preflight | None) -> Iterator[str]:
    if preflight is None:
        return
    yield "## On the device"
    yield f"By {preflight.source}. {where_text(preflight)}."
    if preflight.figures:
        yield _table(
            ["figure", "value"], [[f"`{name}`", figure_text(value)] for name, value in preflight.figures.items()]
        )
    elsewhere = [each for each in preflight.verdicts if each.placement != Placement.NPU]
    if elsewhere:
        yield _table(["where", "why", "what to change", "modules"], _by_reason(rows_of(elsewhere), preflight))


def _by_reason(rows: Sequence[Row], preflight: Preflight) -> Iterator[list[str]]:
    """Yield a line for each reason, with all modules that it holds for."""
    for place, reason, remedy in dict.fromkeys((row.placement, row.reason, row.remedy) for row in rows):
        modules = [
            f"`{row.module or '-'}` {row.operators}"
            + (f", {cycles} cycles" if (cycles := cycles_text(row, preflight)) else "")
            for row in rows
            if (row.placement, row.reason, row.remedy) == (place, reason, remedy)
        ]
        yield [str(place), reason, remedy, "<br>".join(modules)]


def _files(report: Report) -> Iterator[str]:
    yield "## Files"
    if report.status == "refused":
        yield "As they were when they were measured; they are not in this folder."
    rows = [[f"`{each.name}`", f"{each.num_bytes / MEBI:.3f} MiB", f"`{each.sha256}`"] for each in report.files]
    yield _table(["file", "size", "SHA-256"], rows)


def _bits(report: Report) -> Iterator[str]:
    if not (report.precise or report.ranking or report.qat_epochs):
        return
    yield "## Quantisation"
    if report.qat_epochs:
        yield f"Fine-tuned with rounded numbers for {report.qat_epochs} epochs."
    if report.precise:
        yield f"More than eight bits: {', '.join(f'`{each}`' for each in report.precise)}."
    if report.ranking:
        yield "The layers that suffer most from eight bits, each rounded by itself:"
        rows = [[f"`{each.module}`", sqnr_text(each.sqnr_db)] for each in report.ranking[:MOST_RANKED]]
        yield _table(["layer", "outputs' SQNR"], rows)


def _conditions(report: Report) -> Iterator[str]:
    yield "## How it was made"
    lines = [
        f"artifact: `{report.artifact}`, SHA-256 `{report.artifact_sha256}`",
        f"settings: {', '.join(f'`{k} = {v!r}`' for k, v in report.settings.items()) or 'the defaults'}",
        f"passes: {', '.join(f'`{each}`' for each in report.passes) or 'none'}",
    ]
    if report.proof:
        worst = ", ".join(f"{value:.1e} in {precision}" for precision, value in report.proof.items())
        lines.append(f"proof that they change nothing: the worst difference is {worst}, over 1 + magnitude")
    if report.calibration is not None:
        lines.append(f"calibration: {report.calibration.source}, SHA-256 `{report.calibration.digest}`")
    lines.append(f"comparison: {report.comparison.source}, SHA-256 `{report.comparison.digest}`")
    lines.append(f"versions: {', '.join(f'{name} {version}' for name, version in report.versions.items())}")
    lines += report.notes
    yield "\n".join(f"- {line}" for line in lines)


def _change(stage: Stage, first: float | None) -> str:
    return "" if stage.ap is None or first is None else f"{stage.ap - first:+.4f}"


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.4f}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
