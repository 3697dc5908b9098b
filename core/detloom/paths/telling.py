"""An analysis as JSON data, as a heading and as tables for a terminal."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from detloom.paths.analysis import Analysis, Reach
from detloom.paths.meetings import Meeting

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["as_data", "counted", "layer_table", "meeting_table", "stage_table", "summary"]

# So many outputs have columns of their own.
MOST_OUTPUTS = 4
MOST_WRITTEN = 10**7
MOST_NAMED = 8
NARROWEST = 12


def as_data(analysis: Analysis, joined: Sequence[Meeting]) -> dict[str, Any]:
    """Return all of it, with stable keys."""
    return {
        "outputs": list(analysis.outputs),
        "longest": analysis.longest,
        "longest_shortest": analysis.longest_shortest,
        "layers": [
            {
                "name": layer.name,
                "stage": layer.stage,
                "uses": layer.uses,
                **_reach(layer.total),
                "sources": list(layer.sources),
                "by_output": {name: _reach(reach) for name, reach in layer.by_output.items()},
            }
            for layer in analysis.layers
        ],
        "stages": [
            {
                "name": stage.name,
                "layers": stage.layers,
                "shortest": stage.shortest,
                "longest": stage.longest,
                "sources": stage.sources,
                "shared": dict(stage.shared),
            }
            for stage in analysis.stages
        ],
        "meetings": [
            {
                "name": each.name,
                "structure": each.structure,
                "feeders": [list(names) for names in each.feeders],
                "carried": list(each.carried),
                "around": None if each.around is None else list(each.around),
            }
            for each in joined
        ],
        "alike": [list(names) for names in analysis.alike],
        "unreached": list(analysis.unreached),
    }


def counted(paths: int) -> str:
    """Return a number of paths in a few characters."""
    return f"{paths:,}" if paths < MOST_WRITTEN else f"{paths:.2e}"


def summary(analysis: Analysis, joined: Sequence[Meeting]) -> Iterator[str]:
    """Yield what can be said in a few lines."""
    ends = len(analysis.outputs)
    yield (
        f"{len(analysis.layers)} layers, {ends} output{'s' if ends != 1 else ''}; longest gradient path "
        f"{analysis.longest} layers, longest of the shortest {analysis.longest_shortest}"
    )
    structures = Counter(each.structure for each in joined)
    yield "; ".join(f"{structure}: {count}" for structure, count in structures.most_common()) or "no flows meet"
    if analysis.unreached:
        more = len(analysis.unreached) - MOST_NAMED
        named = ", ".join(analysis.unreached[:MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
        yield f"no gradient comes to {len(analysis.unreached)} of the layers: {named}"


def layer_table(analysis: Analysis, *, is_short: bool = False) -> "Table":
    """Return a row for each layer.

    Args:
        analysis: What is told.
        is_short: Leave out what each output has of a layer, and the steps.
    """
    from rich.table import Table

    table = Table(title="layers", title_justify="left")
    outputs = analysis.outputs if 1 < len(analysis.outputs) <= MOST_OUTPUTS and not is_short else ()
    table.add_column("layer", overflow="fold", min_width=NARROWEST)
    for column in ("stage", "shortest", "longest", *outputs, "paths", *(() if is_short else ("steps",)), "sources"):
        # Where there is no room, it is names that go on in the next line.
        is_name = column == "stage"
        table.add_column(column, justify="left" if is_name else "right", no_wrap=not is_name)
    for layer in analysis.layers:
        name = layer.name if layer.uses == 1 else f"{layer.name} ({layer.uses} uses)"
        ranges = [_range(layer.by_output.get(output)) for output in outputs]
        total = layer.total
        table.add_row(
            *(name, layer.stage, str(total.shortest), str(total.longest)),
            *(*ranges, counted(total.paths)),
            *(() if is_short else (str(len(total.steps)),)),
            str(len(layer.sources)),
        )
    return table


def stage_table(analysis: Analysis) -> "Table":
    """Return a row for each stage."""
    from rich.table import Table

    table = Table(title="stages", title_justify="left")
    for column in ("stage", "layers", "shortest", "longest", "sources", "shares sources with"):
        table.add_column(column, justify="left" if column[:3] in ("sta", "sha") else "right")
    for stage in analysis.stages:
        shared = ", ".join(f"{other} ({count})" for other, count in stage.shared.items())
        numbers = (stage.layers, stage.shortest, stage.longest, stage.sources)
        table.add_row(stage.name, *map(str, numbers), shared)
    return table


def meeting_table(joined: Sequence[Meeting]) -> "Table":
    """Return a row for each place where flows meet."""
    from rich.table import Table

    table = Table(title="where flows meet", title_justify="left")
    for column in ("module", "structure", "inputs", "carried", "around layers"):
        table.add_column(column, justify="left" if column in ("module", "structure") else "right", overflow="fold")
    for each in joined:
        around = "" if each.around is None else "-".join(map(str, dict.fromkeys(each.around)))
        carried = str(len(each.carried)) if each.carried else ""
        table.add_row(each.name, each.structure, str(len(each.feeders)), carried, around)
    return table


def _reach(reach: Reach) -> dict[str, Any]:
    return {
        "shortest": reach.shortest,
        "longest": reach.longest,
        "paths": reach.paths,
        "steps": list(reach.steps),
    }


def _range(reach: Reach | None) -> str:
    return "" if reach is None else "-".join(map(str, dict.fromkeys((reach.shortest, reach.longest))))
