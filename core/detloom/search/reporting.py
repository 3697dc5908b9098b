"""What a search found: as data, Markdown, CSV, a table for the terminal; and the files of all that."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detloom.durable import write_text
from detloom.pictures import write_picture
from detloom.search.figures import in_digits
from detloom.search.front import best, front, hypervolume
from detloom.search.plotting import plot_front
from detloom.search.running import Task, label
from detloom.search.settings import AP
from detloom.search.space import State, Trial, known

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["as_csv", "as_data", "as_markdown", "statement", "terminal_table", "write_search"]


def as_data(task: Task, trials: Sequence[Trial]) -> dict[str, Any]:
    """Return everything as JSON data."""
    objectives = task.search.space.objectives
    winner = best(trials, objectives)
    volume, reference = _reached(task, trials)
    return {
        "search": task.search.as_data(),
        "points": task.search.space.size,
        "states": {str(state): sum(trial.state == state for trial in trials) for state in State},
        "objectives": [each.name for each in objectives],
        "best": None if winner is None else winner.number,
        "front": [trial.number for trial in front(trials, objectives)],
        "hypervolume": volume,
        "hypervolume_reference": reference,
        "trials": [
            {
                "number": trial.number,
                "overrides": task.search.space.overrides(trial.point),
                "state": str(trial.state),
                "figures": dict(trial.figures),
                "reason": trial.reason,
            }
            for trial in trials
        ],
    }


def as_markdown(task: Task, trials: Sequence[Trial]) -> str:
    """Return the front and all trials as Markdown."""
    names = _figure_names(task)
    lines = [f"# Search: {task.search.name}", "", statement(task, trials), "", "![front](front.png)", ""]
    for title, shown in (("Front", front(trials, task.search.space.objectives)), ("All trials", trials)):
        lines += [
            f"## {title}",
            "",
            f"| trial | point | {' | '.join(names)} | state |",
            "|---" * (len(names) + 3) + "|",
        ]
        for trial in shown:
            state = f"{trial.state}: {trial.reason.splitlines()[0]}" if trial.reason else str(trial.state)
            figures = [_number(trial, name) for name in names]
            cells = (str(trial.number), label(task.search, trial.point), *figures, state)
            lines.append(f"| {' | '.join(map(_in_cell, cells))} |")
        lines.append("")
    return "\n".join(lines)


def as_csv(task: Task, trials: Sequence[Trial]) -> str:
    """Return all trials as CSV, a column for each key and each figure."""
    keys, names = [choice.key for choice in task.search.space.choices], _figure_names(task)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trial", *keys, *names, "state", "on_front", "reason"])
    best_ones = {trial.number for trial in front(trials, task.search.space.objectives)}
    for trial in trials:
        options = [json.dumps(value) for value in task.search.space.overrides(trial.point).values()]
        figures = [trial.figures.get(name, "") for name in names]
        writer.writerow([trial.number, *options, *figures, trial.state, trial.number in best_ones, trial.reason])
    return text.getvalue()


def terminal_table(task: Task, trials: Sequence[Trial]) -> "Table":
    """Return the front, for a terminal."""
    from rich.markup import escape
    from rich.table import Table

    names = _figure_names(task)
    table = Table(title=f"{task.search.name}: the front", title_justify="left")
    table.add_column("trial", justify="right")
    table.add_column("point", overflow="fold")
    for name in names:
        table.add_column(name, justify="right")
    for trial in front(trials, task.search.space.objectives):
        row = [_number(trial, name) for name in names]
        table.add_row(str(trial.number), escape(label(task.search, trial.point)), *row)
    return table


def statement(task: Task, trials: Sequence[Trial]) -> str:
    """Return in a sentence or three what was tried and found."""
    states = {state: sum(trial.state == state for trial in trials) for state in State}
    tried = (
        f"{states[State.FINISHED]} of {task.search.space.size:,} points have a result; refused: "
        f"{states[State.REFUSED]}, failed: {states[State.FAILED]}, proposed again: {states[State.REPEATED]}."
    )
    objectives = task.search.space.objectives
    winner = best(trials, objectives)
    if winner is None:
        return f"{tried} Nothing was found; {_least(task, trials)}the reasons are in the table of all trials."
    first = objectives[0]
    found = f"The highest {first.name}, {in_digits(winner.values[0])}, is that of trial {winner.number}."
    chosen = " It was chosen on the pictures that it was measured on, so expect less on others." * (first.name == AP)
    if len(objectives) == 1:
        return f"{tried} {found}{chosen}"
    volume, reference = _reached(task, trials)
    worst = ", ".join(f"{each.name} {in_digits(value)}" for each, value in zip(objectives, reference, strict=True))
    return f"{tried} {found}{chosen} The front's hypervolume is {in_digits(volume)}, over {worst}."


def _least(task: Task, trials: Sequence[Trial]) -> str:
    """Say how far the refused points are from what is allowed."""
    said = []
    for name in task.search.constraints:
        values = [trial.figures[name] for trial in trials if name in trial.figures]
        if values and min(values) > task.search.constraints[name]:
            said.append(f"the lowest {name} was {in_digits(min(values))}; ")
    return "".join(said)


def write_search(task: Task, trials: Sequence[Trial], directory: Path) -> list[Path]:
    """Write the reports, the picture, and the recipes of the winner and the front; return their paths.

    Raises:
        ArtifactError: A file cannot be written.
    """
    objectives = task.search.space.objectives
    texts = {
        "report.md": as_markdown(task, trials),
        "report.csv": as_csv(task, trials),
        "report.json": json.dumps(as_data(task, trials), indent=1) + "\n",
    }
    (directory / "front").mkdir(exist_ok=True)
    for old in (directory / "front").glob("*.toml"):
        old.unlink()
    for trial in front(trials, objectives):
        texts[f"front/trial-{trial.number:04}.toml"] = _recipe_text(task, trial)
    winner = best(trials, objectives)
    if winner is not None:
        texts["best.toml"] = _recipe_text(task, winner)
    for name, text in texts.items():
        write_text(directory / name, text)
    write_picture(directory / "front.png", plot_front(trials, objectives))
    return [directory / name for name in (*texts, "front.png")]


def _recipe_text(task: Task, trial: Trial) -> str:
    recipe = task.recipe(trial.point, is_final=True)
    plugins = tuple(str(Path(each).resolve()) for each in recipe.plugins)
    return replace(recipe, plugins=plugins).to_toml()


def _reached(task: Task, trials: Sequence[Trial]) -> tuple[float, list[float]]:
    """Return the hypervolume of what was found, and what it counts from.

    That is the worst value of each objective: its constraint, else the worst that was found; 0 of AP.
    """
    objectives = task.search.space.objectives
    values = [trial.values for trial in known(trials)]
    found = []
    for place, each in enumerate(objectives):
        worst = [value[place] for value in values] or [0.0]
        limit = task.search.constraints.get(each.name, max(worst))
        found.append(float((0.0 if each.name == AP else min(worst)) if each.is_maximised else limit))
    return hypervolume(values, found, objectives), found


def _figure_names(task: Task) -> list[str]:
    objectives = [each.name for each in task.search.space.objectives]
    return list(dict.fromkeys((*objectives, *task.figures.wanted)))


def _in_cell(text: str) -> str:
    return text.replace("|", "\\|")


def _number(trial: Trial, name: str) -> str:
    return in_digits(trial.figures[name]) if name in trial.figures else ""
