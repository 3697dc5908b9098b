"""The report as data, text and pictures."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest

from detloom.errors import DataError
from detloom.study.figures import plot_curves, plot_differences
from detloom.study.matches import Matches
from detloom.study.reporting import COLUMNS, Report, as_csv, as_data, as_markdown, rows, seconds_in_words, statements
from detloom.study.results import CellResult, compared
from detloom.study.writing import write_report


def test_statements_say_what_differs_and_what_was_not_compared(report: Report) -> None:
    assert statements(report) == [
        "better: higher than the baseline",
        "alike: no evidence of a difference",
        "broken: not compared: it has no finished run (failed)",
        "odd: impossible",
    ]


def test_data_has_stable_keys_and_the_numbers_of_the_runs(report: Report) -> None:
    data = as_data(report)
    plain, better = data["cells"][:2]

    assert sorted(data) == ["cells", "study"]
    assert sorted(better) == [
        "AP",
        "difference",
        "gflops",
        "latency_ms",
        "name",
        "overrides",
        "parameters",
        "peak_memory_mib",
        "reason",
        "runs",
        "statement",
        "status",
        "training_seconds",
    ]
    assert sorted(better["difference"]) == ["high", "low", "mean", "p", "p_holm", "seeds"]
    aps = [[run["AP"] for run in cell["runs"]] for cell in (plain, better)]
    assert better["AP"]["mean"] == pytest.approx(np.mean(aps[1]))
    assert better["AP"]["spread"] == pytest.approx(np.std(aps[1], ddof=1))
    assert better["difference"]["mean"] == pytest.approx(np.mean(aps[1]) - np.mean(aps[0]))
    assert better["difference"]["low"] < better["difference"]["mean"] < better["difference"]["high"]
    assert better["training_seconds"] == 21
    assert better["peak_memory_mib"] == 102
    json.dumps(data)


def test_p_values_are_corrected_for_the_comparisons_that_were_made(report: Report) -> None:
    better, alike = (cell["difference"] for cell in as_data(report)["cells"][1:3])

    assert better["p_holm"] == pytest.approx(2 * better["p"])
    assert alike["p_holm"] == pytest.approx(max(alike["p"], better["p_holm"]))


def test_markdown_has_a_row_for_each_cell_and_what_went_wrong(report: Report) -> None:
    text = as_markdown(report)

    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 5
    assert all(line.replace("\\|", "").count("|") == len(COLUMNS) + 1 for line in table)
    assert "- odd: no such size | at all" in text
    assert "- broken, seed 1: a loss is not finite" in text


def test_csv_has_a_line_for_each_run_and_for_what_was_impossible(report: Report) -> None:
    lines = list(csv.DictReader(io.StringIO(as_csv(report))))

    assert [line["cell"] for line in lines].count("better") == 3
    assert len(lines) == 4 * 3 + 1
    assert {line["status"] for line in lines} == {"finished", "failed", "impossible"}
    assert float(lines[3]["difference"]) > 0


def test_rows_have_a_dash_for_what_is_not_known(report: Report) -> None:
    assert rows(report)[-1] == ("odd", *["-"] * 5, "impossible", *["-"] * 6)


def test_plots_are_drawn_even_of_nothing(report: Report) -> None:
    empty = Report(report.about, report.cells[-1:])

    for shown in (report, empty):
        for picture in (plot_differences(shown), plot_curves(shown)):
            assert picture.dtype == np.uint8
            assert int(picture.min()) < 100


def test_all_files_are_written(report: Report, tmp_path: Path) -> None:
    written = write_report(report, tmp_path / "report")

    assert [path.name for path in written] == [
        "report.html",
        "report.md",
        "report.csv",
        "report.json",
        "differences.png",
        "curves.png",
    ]
    assert all(path.stat().st_size > 100 for path in written)


def test_runs_on_different_pictures_are_not_compared(report: Report) -> None:
    plain, better = (cell for cell, _ in report.cells[:2])
    file = better.runs[0].matches
    matches = Matches.read(file)
    object.__setattr__(matches, "objects_IC", matches.objects_IC + 1)
    matches.write(file)

    with pytest.raises(DataError, match="different pictures or annotations"):
        compared([plain, better], resamples=100, confidence=0.95)


def test_cells_are_compared_over_the_seeds_that_both_have(report: Report) -> None:
    plain, better = (cell for cell, _ in report.cells[:2])
    fewer = CellResult("fewer", {}, better.runs[1:2])

    (_, found) = compared([plain, fewer], resamples=100, confidence=0.95)

    assert found.difference is not None
    assert found.difference.mean == pytest.approx((better.runs[1].ap or 0) - (plain.runs[1].ap or 0))
    assert found.statement == "higher than the baseline; one seed: the interval does not cover seeds"


@pytest.mark.parametrize(
    ("seconds", "said"), [(3.21, "3.2 s"), (59.4, "59 s"), (90, "2 min"), (3570, "1 h 0 min"), (5025, "1 h 24 min")]
)
def test_times_are_said_in_words(seconds: float, said: str) -> None:
    assert seconds_in_words(seconds) == said
