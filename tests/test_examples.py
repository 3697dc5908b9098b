"""The short scripts in ``examples/``."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "examples" / "find_and_count.py"


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("arguments", [[], ["best.safetensors"]])
def test_counting_without_arguments_tells_how_it_is_used(arguments: list[str]) -> None:
    done = run(*arguments)

    assert done.returncode == 2
    assert done.stderr == f"usage: python {SCRIPT} ARTIFACT PICTURE...\n"


def test_counting_in_a_picture_that_is_not_there_says_so_in_a_line(tmp_path: Path) -> None:
    import detloom
    from detloom.artifacts import save_artifact

    detector = detloom.assemble("demo", num_classes=2)
    assert detector.recipe is not None
    save_artifact(tmp_path / "a.safetensors", detector, recipe=detector.recipe, names=("cat", "dog"))

    done = run(tmp_path / "a.safetensors", tmp_path / "gone.jpg")

    assert done.returncode == 2
    assert done.stderr.startswith(f"{tmp_path}/gone.jpg: there is no such file")
    assert done.stderr.count("\n") == 1
