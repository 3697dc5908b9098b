"""Preflights gathered by module."""

import json

import pytest

from detloom.export.network import Placement, Preflight, Verdict
from detloom.export.placements import counted, plain, rows_of, share_of_cycles

SLOW = Verdict("neck", "MUL", Placement.CPU, "too wide", "take a narrow one", 60)
PREFLIGHT = Preflight(
    "board",
    "a table",
    (
        Verdict("stem", "CONV", Placement.NPU, cycles=10),
        Verdict("stem", "PAD", Placement.NPU, cycles=10),
        Verdict("stem", "CONV", Placement.NPU, cycles=20),
        SLOW,
        Verdict("head", "ERFINV", Placement.REFUSED, "unknown"),
    ),
    {"sram_kib": 4.0},
)


def test_operators_of_a_module_that_run_in_one_place_are_one_row() -> None:
    stem, neck, head = rows_of(PREFLIGHT.verdicts)

    assert (stem.module, stem.operators, stem.cycles) == ("stem", "2 x CONV, PAD", 40)
    assert (neck.placement, neck.reason, neck.remedy) == (Placement.CPU, "too wide", "take a narrow one")
    assert head.cycles is None


def test_share_is_that_of_all_known_cycles() -> None:
    shares = [share_of_cycles(row, PREFLIGHT) for row in rows_of(PREFLIGHT.verdicts)]

    assert shares == [pytest.approx(0.4), pytest.approx(0.6), None]


def test_placements_without_operators_are_counted_too() -> None:
    assert counted(PREFLIGHT) == {"npu": 3, "split": 0, "cpu": 1, "refused": 1}


def test_plain_form_is_json_with_stable_keys() -> None:
    facts = json.loads(json.dumps(plain(PREFLIGHT)))

    assert set(facts) == {"target", "source", "counts", "figures", "operators"}
    assert facts["operators"][3] == {
        "module": "neck",
        "operator": "MUL",
        "placement": "cpu",
        "reason": "too wide",
        "remedy": "take a narrow one",
        "cycles": 60,
    }
