"""A study's report as plain data, a terminal's table, Markdown and CSV. The keys of the data are stable."""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from detloom.study.results import CellResult, Comparison

__all__ = [
    "COLUMNS",
    "Report",
    "as_csv",
    "as_data",
    "as_markdown",
    "caption",
    "rows",
    "seconds_in_words",
    "statements",
    "terminal_tables",
]

COLUMNS = (
    "cell",
    "AP",
    "spread",
    "difference",
    "interval",
    "p (Holm)",
    "statement",
    "parameters",
    "GFLOPs",
    "ms",
    "ms fused",
    "training",
    "MiB",
)
FOUND = ("cell", "AP", "spread", "difference", "interval", "p (Holm)")
COSTS = ("cell", "parameters", "GFLOPs", "ms", "ms fused", "training", "MiB")
TEXTS = ("cell", "statement")
NOTHING = "-"


@dataclass(frozen=True, slots=True)
class Report:
    """What a study or a comparison of runs shows.

    Attributes:
        about: Its settings, and the method.
        cells: Each with its comparison, the baseline first.
    """

    about: Mapping[str, Any]
    cells: tuple[tuple[CellResult, Comparison], ...]


def as_data(report: Report) -> dict[str, Any]:
    """Return the report as JSON data."""
    return {"study": dict(report.about), "cells": [_cell(*each) for each in report.cells]}


def rows(report: Report) -> list[tuple[str, ...]]:
    """Return the table's cells as text, in the order of ``COLUMNS``."""
    return [_row(_cell(*each)) for each in report.cells]


def terminal_tables(report: Report) -> list[Any]:
    """Return two tables for rich's console, each as wide as a terminal: what was found, and what it costs."""
    from rich.table import Table

    tables = []
    for title, columns in ((_title(report), FOUND), ("what it costs", COSTS)):
        table = Table(title=title, title_justify="left")
        for column in columns:
            table.add_column(
                column, justify="left" if column in TEXTS else "right", overflow="fold", no_wrap=column == "interval"
            )
        for row in rows(report):
            shown = dict(zip(COLUMNS, row, strict=True))
            # Intervals have brackets, which rich would take for its own.
            table.add_row(*(shown[column].replace("[", "\\[") for column in columns))
        tables.append(table)
    return tables


def statements(report: Report) -> list[str]:
    """Return a sentence for each cell but the baseline."""
    return [f"{cell.name}: {_said(_cell(cell, comparison))}" for cell, comparison in report.cells[1:]]


def as_markdown(report: Report) -> str:
    """Return the table, what failed and what was impossible, in Markdown."""
    lines = [f"# {_title(report)}", "", "| " + " | ".join(COLUMNS) + " |"]
    lines.append("|" + "|".join(" --- " if name in TEXTS else " ---: " for name in COLUMNS) + "|")
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows(report)]
    lines += ["", caption(report)]
    for title, told in (("Impossible", _impossible(report)), ("Failed", _failed(report))):
        if told:
            lines += ["", f"## {title}", ""]
            lines += [f"- {name}: {' '.join(text.split())}" for name, text in told]
    return "\n".join(lines) + "\n"


def as_csv(report: Report) -> str:
    """Return one line for each run, with what is known of its cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [
            "cell",
            "seed",
            "status",
            "AP",
            "seconds",
            "peak_memory_mib",
            "cell_AP",
            "spread",
            "difference",
            "low",
            "high",
            "p",
            "p_holm",
            "parameters_training",
            "parameters_deployed",
            "gflops_training",
            "gflops_deployed",
            "latency_before_ms",
            "latency_after_ms",
            "statement",
        ]
    )
    for each in report.cells:
        data = _cell(*each)
        ap, difference, latency = data["AP"], data["difference"] or {}, data["latency_ms"] or {}
        shared = [
            ap["mean"],
            ap["spread"],
            *(difference.get(key) for key in ("mean", "low", "high", "p", "p_holm")),
            *((data[key] or {}).get(form) for key in ("parameters", "gflops") for form in ("training", "deployed")),
            latency.get("before"),
            latency.get("after"),
            data["statement"],
        ]
        for run in data["runs"] or [{"seed": None, "status": data["status"]}]:
            own = [run.get(key) for key in ("seed", "status", "AP", "seconds", "peak_memory_mib")]
            writer.writerow(["" if value is None else value for value in (data["name"], *own, *shared)])
    return text.getvalue()


def seconds_in_words(seconds: float) -> str:
    """Return a time as people say it.

    >>> seconds_in_words(5025)
    '1 h 24 min'
    """
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _cell(cell: CellResult, comparison: Comparison) -> dict[str, Any]:
    difference, check = comparison.difference, cell.report
    times = [run.seconds for run in cell.finished.values() if run.seconds is not None]
    memory = [run.peak_memory_mib for run in cell.finished.values() if run.peak_memory_mib is not None]
    return {
        "name": cell.name,
        "overrides": dict(cell.overrides),
        "status": cell.status,
        "reason": cell.reason,
        "AP": {"mean": cell.ap_mean, "spread": cell.ap_spread},
        "difference": None
        if difference is None
        else {
            "mean": difference.mean,
            "low": difference.low,
            "high": difference.high,
            "p": difference.p,
            "p_holm": comparison.p_holm,
            "seeds": difference.seeds,
        },
        "statement": comparison.statement,
        "parameters": None
        if check is None
        else {"training": check.training_parameters, "deployed": check.deployed_parameters},
        "gflops": None
        if check is None
        else {"training": round(check.training_gflops, 4), "deployed": round(check.deployed_gflops, 4)},
        "latency_ms": dict(cell.latency) or None,
        "training_seconds": round(sum(times) / len(times), 3) if times else None,
        "peak_memory_mib": max(memory) if memory else None,
        "runs": [
            {
                "seed": run.seed,
                "directory": str(run.directory),
                "status": run.status,
                "error": run.error,
                "AP": run.ap,
                "seconds": run.seconds,
                "peak_memory_mib": run.peak_memory_mib,
                "curve": [dict(epoch) for epoch in run.curve],
            }
            for run in cell.runs
        ],
    }


def _row(cell: Mapping[str, Any]) -> tuple[str, ...]:
    difference, latency = cell["difference"], cell["latency_ms"] or {}
    return (
        cell["name"],
        _number(cell["AP"]["mean"], ".4f"),
        _number(cell["AP"]["spread"], ".4f"),
        _number(difference and difference["mean"], "+.4f"),
        f"[{difference['low']:+.4f}, {difference['high']:+.4f}]" if difference else NOTHING,
        _number(difference and difference["p_holm"], ".3f"),
        _said(cell),
        _number(cell["parameters"] and cell["parameters"]["deployed"], ","),
        _number(cell["gflops"] and cell["gflops"]["deployed"], ".2f"),
        _number(latency.get("before"), ".1f"),
        _number(latency.get("after"), ".1f"),
        NOTHING if cell["training_seconds"] is None else seconds_in_words(cell["training_seconds"]),
        _number(cell["peak_memory_mib"], ".0f"),
    )


def _said(cell: Mapping[str, Any]) -> str:
    is_whole = cell["status"] in ("finished", "impossible")
    return cell["statement"] if is_whole else f"{cell['statement']} ({cell['status']})"


def _number(value: float | None, form: str) -> str:
    return NOTHING if value is None else format(value, form)


def _title(report: Report) -> str:
    about = report.about
    return f"{about['name']}: {len(report.cells)} cells, seeds {', '.join(map(str, about['seeds']))}"


def caption(report: Report) -> str:
    """Return how the table is to be read."""
    about = report.about
    return (
        f"AP of the {about['weights']} weights, mean over seeds; differences to '{about['baseline']}' with "
        f"{about['confidence']:.0%} intervals by {about['method']}; {about['resamples']} draws. Parameters and GFLOPs "
        "of the deployed form; ms: milliseconds of one picture, before and after the reparam passes; MiB: the most "
        "memory of a training."
    )


def _impossible(report: Report) -> list[tuple[str, str]]:
    return [(cell.name, cell.reason) for cell, _ in report.cells if cell.reason]


def _failed(report: Report) -> list[tuple[str, str]]:
    return [(f"{cell.name}, seed {run.seed}", run.error) for cell, _ in report.cells for run in cell.runs if run.error]
