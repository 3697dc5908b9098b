"""What is shipped: the wheel, and a distribution of somebody else beside it."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "detloom-centre-assigner"


def build_wheel(project: Path, folder: Path) -> Path:
    """Build with what is installed, from a copy of nothing: the tree is only read."""
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(project)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the unpacked wheels of detloom and of the example plugin."""
    folder = tmp_path_factory.mktemp("site")
    for project in (ROOT, EXAMPLE):
        with zipfile.ZipFile(build_wheel(project, tmp_path_factory.mktemp("wheel"))) as wheel:
            wheel.extractall(folder)
    return folder


def run_outside(site: Path, folder: Path, *arguments: str, disabled: str = "") -> subprocess.CompletedProcess[str]:
    """Run Python in an empty folder, with the unpacked wheels before everything else."""
    environment = {**os.environ, "PYTHONPATH": str(site), "DETLOOM_DISABLE_PLUGINS": disabled}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_wheel_holds_the_two_packages_and_what_they_read(site: Path) -> None:
    top = {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")}

    assert top == {"detloom", "detloom_plugins", "detloom_centre"}
    assert (site / "detloom" / "registry.toml").read_bytes() == (ROOT / "registry.toml").read_bytes()
    for package, source in (("detloom", "core"), ("detloom_plugins", "plugins")):
        shipped = {str(path.relative_to(site / package)) for path in (site / package).rglob("*.*")}
        written = {str(path.relative_to(ROOT / source / package)) for path in (ROOT / source / package).rglob("*.*")}
        missing = {name for name in written - shipped if "__pycache__" not in name}
        assert missing == set()
        assert "py.typed" in shipped


@pytest.mark.slow
def test_the_wheel_works_outside_the_tree(site: Path, tmp_path: Path) -> None:
    where = run_outside(site, tmp_path, "-c", "import detloom, detloom_plugins; print(detloom.__file__)")
    shown = run_outside(site, tmp_path, "-m", "detloom", "show", "yolov7-tiny", "--json")

    assert Path(where.stdout.strip()) == site / "detloom" / "__init__.py"
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout)["recipe"]["backbone"]["use"] == "elan"


@pytest.mark.slow
def test_a_plugin_of_another_distribution_is_found(site: Path, tmp_path: Path) -> None:
    listed = run_outside(site, tmp_path, "-m", "detloom", "list", "assigner", "--json")
    checked = run_outside(site, tmp_path, "-m", "detloom", "check", "yolov7-tiny", "--set", "assigner.use=centre")

    rows = {row["name"]: row["plugin"] for row in json.loads(listed.stdout)}
    assert rows["centre"] == "detloom-centre-assigner"
    assert rows["atss"] == "detloom"
    assert checked.returncode == 0, checked.stderr


@pytest.mark.slow
def test_a_plugin_that_is_switched_off_is_not_found_and_the_message_says_so(site: Path, tmp_path: Path) -> None:
    arguments = ("-m", "detloom", "check", "yolov7-tiny", "--set", "assigner.use=centre")

    result = run_outside(site, tmp_path, *arguments, disabled="centre")

    assert result.returncode == 2
    assert "no assigner is called 'centre'" in result.stderr
    assert "switched off by DETLOOM_DISABLE_PLUGINS: centre" in result.stderr


@pytest.mark.slow
def test_the_example_passes_its_own_tests(site: Path, tmp_path: Path) -> None:
    result = run_outside(site, tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(EXAMPLE / "tests"))

    assert result.returncode == 0, result.stdout
