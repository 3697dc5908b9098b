"""The files of a report."""

import json
from pathlib import Path

from detloom.durable import write_text
from detloom.pictures import make_directory, write_picture
from detloom.study.figures import plot_curves, plot_differences
from detloom.study.page import page
from detloom.study.reporting import Report, as_csv, as_data, as_markdown

__all__ = ["write_report"]


def write_report(report: Report, directory: Path) -> list[Path]:
    """Write JSON, CSV, Markdown, two plots and the page; return their paths, the page first.

    Raises:
        ArtifactError: A file cannot be written.
    """
    make_directory(directory)
    texts = {
        "report.html": page(report),
        "report.md": as_markdown(report),
        "report.csv": as_csv(report),
        "report.json": json.dumps(as_data(report), indent=1) + "\n",
    }
    for name, text in texts.items():
        write_text(directory / name, text)
    pictures = {"differences.png": plot_differences(report), "curves.png": plot_curves(report)}
    for name, picture_HW3 in pictures.items():
        write_picture(directory / name, picture_HW3)
    return [directory / name for name in (*texts, *pictures)]
