"""What a target does with a network, gathered by module: for the terminal, for reports, and as plain data."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from detloom.export.network import Placement, Preflight, Verdict

__all__ = ["Row", "counted", "plain", "rows_of", "share_of_cycles"]


@dataclass(frozen=True, slots=True)
class Row:
    """The operators of one module that run in one place for one reason.

    Attributes:
        module: Path in the detector, or nothing.
        operators: What they are called, with how many there are of each where there are several.
        placement: Where they run.
        reason: Why, where it is not simply on the NPU.
        remedy: What to change, where something can be.
        cycles: Their sum, where the compiler estimates them.
    """

    module: str
    operators: str
    placement: Placement
    reason: str
    remedy: str
    cycles: int | None


def rows_of(verdicts: Iterable[Verdict]) -> tuple[Row, ...]:
    """Gather verdicts by module, in the order of the graph."""
    groups: dict[tuple[str, Placement, str, str], list[Verdict]] = {}
    for each in verdicts:
        groups.setdefault((each.module, each.placement, each.reason, each.remedy), []).append(each)
    return tuple(
        Row(module, _operators(group), placement, reason, remedy, _cycles(group))
        for (module, placement, reason, remedy), group in groups.items()
    )


def counted(preflight: Preflight) -> dict[str, int]:
    """Return how many operators run where."""
    return {str(each): len(preflight.at(each)) for each in Placement}


def share_of_cycles(row: Row, preflight: Preflight) -> float | None:
    """Return which part of all estimated cycles a row takes, where they are known."""
    total = sum(each.cycles or 0 for each in preflight.verdicts)
    return row.cycles / total if total and row.cycles is not None else None


def plain(preflight: Preflight) -> dict[str, Any]:
    """Return a preflight as JSON data."""
    return {
        "target": preflight.target,
        "source": preflight.source,
        "counts": counted(preflight),
        "figures": dict(preflight.figures),
        "operators": [_plain_verdict(each) for each in preflight.verdicts],
    }


def _plain_verdict(verdict: Verdict) -> Mapping[str, Any]:
    return {**asdict(verdict), "placement": str(verdict.placement)}


def _operators(group: Iterable[Verdict]) -> str:
    counts = Counter(each.operator for each in group)
    return ", ".join(f"{number} x {name}" if number > 1 else name for name, number in counts.items())


def _cycles(group: Iterable[Verdict]) -> int | None:
    known = [each.cycles for each in group if each.cycles is not None]
    return sum(known) if known else None
