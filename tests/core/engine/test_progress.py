"""What a run shows: bars on a terminal, lines elsewhere."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from detloom.engine import progress
from detloom.engine.progress import LinesView, RunView, SilentView, TerminalView, open_view
from detloom.engine.run import EpochRecord, Run
from detloom.recipe import Recipe

RECORD = EpochRecord(1, 4, {"box": 0.5, "class": 0.25}, 0.01, 12.34, {"AP": 0.3, "AP50": 0.6}, None, 0.33)


def shown(view: RunView) -> None:
    run = Run(Path("runs/r-1"), Recipe("r", {}, {}), ("a",), "data", {"AP": 1.0}, 2)
    view.started(run)
    view.epoch_started(1, 0, 8)
    view.advanced(4)
    view.losses_seen(2, {"box": 0.75}, 0.01)
    view.epoch_finished(RECORD)
    view.said("[brackets] stay")
    view.closed()


def test_lines_tell_each_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    shown(LinesView())

    assert capsys.readouterr().err == (
        "run runs/r-1: r, 2 epochs\nepoch 1/2: box 0.5000 class 0.2500, AP 0.300, AP50 0.600, 12.3 s\n[brackets] stay\n"
    )


def test_one_epoch_is_said_in_the_singular(capsys: pytest.CaptureFixture[str]) -> None:
    LinesView().started(Run(Path("runs/r-1"), Recipe("r", {}, {}), ("a",), "data", {"AP": 1.0}, 1))

    assert capsys.readouterr().err == "run runs/r-1: r, 1 epoch\n"


def test_lines_tell_losses_after_a_while(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)

    shown(LinesView())

    assert "epoch 1/2, batch 4/8, step 2: box 0.7500, lr 0.01\n" in capsys.readouterr().err


def test_terminal_has_bars_and_keeps_the_lines() -> None:
    output = io.StringIO()

    shown(TerminalView(Console(file=output, force_terminal=True, width=160)))

    said = output.getvalue()
    assert "epoch 1/2: box 0.5000 class 0.2500" in said
    assert "━" in said
    assert "[brackets] stay" in said


def test_silence_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    shown(SilentView())

    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_view_fits_the_place() -> None:
    assert isinstance(open_view(is_shown=False), SilentView)
    assert isinstance(open_view(), LinesView)
