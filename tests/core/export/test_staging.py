"""Folders that are whole or not there."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from detloom.errors import ArtifactError
from detloom.export.staging import check_destination, staged


def export_into(folder: Path, *, force: bool = False, status: str = "exported", content: str = "new") -> None:
    with staged(folder, force=force) as made:
        (made / "model.bin").write_text(content)
        (made / "report.json").write_text(json.dumps({"status": status}))


def test_folder_appears_whole(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "export"

    with staged(folder, force=False) as made:
        (made / "model.bin").write_text("new")
        assert not folder.exists()

    assert [path.name for path in folder.iterdir()] == ["model.bin"]
    assert [path.name for path in folder.parent.iterdir()] == ["export"]


def test_nothing_is_left_where_something_fails(tmp_path: Path) -> None:
    def fail() -> None:
        with staged(tmp_path / "export", force=False) as made:
            (made / "model.bin").write_text("half")
            raise RuntimeError("the compiler fails")

    with pytest.raises(RuntimeError, match="the compiler fails"):
        fail()

    assert list(tmp_path.iterdir()) == []


def test_export_that_is_there_is_replaced_by_force_alone(tmp_path: Path) -> None:
    folder = tmp_path / "export"
    export_into(folder, content="old")

    with pytest.raises(ArtifactError, match="there is an export already; --force takes its place"):
        export_into(folder)
    kept = (folder / "model.bin").read_text()
    export_into(folder, force=True)

    assert kept == "old"
    assert (folder / "model.bin").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_export_that_is_there_stays_where_its_successor_fails(tmp_path: Path) -> None:
    folder = tmp_path / "export"
    export_into(folder, content="old")

    with pytest.raises(RuntimeError), staged(folder, force=True):
        raise RuntimeError

    assert (folder / "model.bin").read_text() == "old"


def test_report_without_a_model_is_replaced_without_force(tmp_path: Path) -> None:
    folder = tmp_path / "export"
    export_into(folder, status="refused")

    export_into(folder)

    assert json.loads((folder / "report.json").read_text()) == {"status": "exported"}


@pytest.mark.parametrize("force", [True, False])
def test_folder_that_holds_something_else_is_never_replaced(tmp_path: Path, force: bool) -> None:
    (tmp_path / "precious.txt").touch()

    with pytest.raises(ArtifactError, match="this is no export of detloom, and is left as it is"):
        check_destination(tmp_path, force=force)


def test_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "export").mkdir()

    export_into(tmp_path / "export")

    assert (tmp_path / "export" / "model.bin").exists()


def test_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(ArtifactError, match=r"cannot be written: .*\. Write somewhere else: --out"):
        export_into(tmp_path / "file" / "export")


def test_killed_export_leaves_nothing_in_its_place_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from detloom.export.staging import staged\n"
        "with staged(Path(sys.argv[1]), force=False) as made:\n"
        "    (made / 'model.bin').write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    folder = tmp_path / "export"

    killed = subprocess.run([sys.executable, "-c", script, str(folder)], env=os.environ, check=False)

    assert killed.returncode == -signal.SIGKILL
    assert not folder.exists()
    assert len(list(tmp_path.iterdir())) == 1
    export_into(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_export_that_is_under_way_is_not_cleaned_up_by_another(tmp_path: Path) -> None:
    folder = tmp_path / "export"

    with staged(folder, force=True) as made:
        export_into(folder, content="faster")
        (made / "model.bin").write_text("slower")
        (made / "report.json").write_text("{}")

    assert (folder / "model.bin").read_text() == "slower"
