"""Processes of this machine: one that dies harms no other, and none outlives the one that started it."""

import importlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from detloom.errors import PluginError
from detloom.study.executor import LocalExecutor, Outcome, WorkItem

# Does what its task says, as a worker does, without the time that it takes to import one.
WORKER = """
import json, os, signal, sys, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)
task = json.loads(sys.stdin.buffer.readline())
threading.Thread(target=lambda: (sys.stdin.buffer.read(), os._exit(130)), daemon=True).start()
open(task["file"], "a").write(str(os.getpid()) + " " + os.environ["OMP_NUM_THREADS"] + "\\n")
match task["do"]:
    case "fail": sys.stderr.write("== error ==\\nno [such] thing\\n  do this\\n"); sys.stderr.flush(); os._exit(2)
    case "bug": sys.stderr.write("Traceback\\nValueError: what a bug\\n"); sys.stderr.flush(); os._exit(1)
    case "kill": os.kill(os.getpid(), signal.SIGKILL)
    case "sleep":
        try: time.sleep(60)
        except KeyboardInterrupt: open(task["file"], "a").write("asked to stop\\n"); os._exit(130)
os._exit(0)
"""
COMMAND = (sys.executable, "-c", WORKER)


def item(tmp_path: Path, name: str, do: str = "well") -> WorkItem:
    return WorkItem(name, {"do": do, "file": str(tmp_path / name)}, tmp_path / f"{name}.txt")


def is_running(pid: int) -> bool:
    """Return whether there is such a process; one that has ended, but was not asked for its status, is none."""
    status = Path(f"/proc/{pid}/status")
    try:
        os.kill(pid, 0)
        return not status.exists() or "\nState:\tZ" not in status.read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False


def outcomes(items: list[WorkItem], jobs: int = 2) -> dict[str, str]:
    found = LocalExecutor(jobs, command=COMMAND).run(items)
    return {each.item.name: each.error for each in found}


def test_every_item_has_its_outcome_whatever_becomes_of_others(tmp_path: Path) -> None:
    kinds = {"a": "well", "b": "fail", "c": "bug", "d": "kill", "e": "well"}

    found = outcomes([item(tmp_path, name, do) for name, do in kinds.items()])

    assert found["a"] == found["e"] == ""
    assert found["b"] == "no [such] thing\n  do this"
    assert found["c"].startswith("ValueError: what a bug (exit status 1; its output: ")
    assert found["d"].startswith("the process was killed by SIGKILL (was memory short?); its")


def test_no_more_run_at_once_than_asked_and_cores_are_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("detloom.study.executor.num_cores", lambda: 6)

    assert set(outcomes([item(tmp_path, name) for name in "abcd"], jobs=3).values()) == {""}

    assert all((tmp_path / name).read_text().split()[1] == "2" for name in "abcd")


def test_each_job_has_a_gpu_of_its_own_where_there_are_several(tmp_path: Path) -> None:
    worker = WORKER.replace('os.environ["OMP_NUM_THREADS"]', 'os.environ["CUDA_VISIBLE_DEVICES"]')
    worker = worker.replace("match task", "time.sleep(0.5)\nmatch task")

    found = LocalExecutor(2, devices=("4", "7"), command=(sys.executable, "-c", worker)).run(
        [item(tmp_path, name) for name in "ab"]
    )

    assert [each.error for each in found] == ["", ""]
    assert {(tmp_path / name).read_text().split()[1] for name in "ab"} == {"4", "7"}


def test_closing_early_asks_what_is_running_to_stop(tmp_path: Path) -> None:
    found = LocalExecutor(2, command=COMMAND).run([item(tmp_path, "slow", "sleep"), item(tmp_path, "quick")])
    first: Outcome = next(found)
    deadline = time.monotonic() + 30
    while not (tmp_path / "slow").exists() and time.monotonic() < deadline:
        time.sleep(0.05)

    found.close()

    assert first.item.name == "quick"
    pid, *rest = (tmp_path / "slow").read_text().splitlines()
    assert rest == ["asked to stop"]
    assert not is_running(int(pid.split()[0]))


def test_processes_die_with_the_one_that_was_killed(tmp_path: Path) -> None:
    script = textwrap.dedent(f"""
        from pathlib import Path
        from detloom.study.executor import LocalExecutor, WorkItem
        task = {{"do": "sleep", "file": {str(tmp_path / "worker")!r}}}
        item = WorkItem("worker", task, Path({str(tmp_path / "log.txt")!r}))
        list(LocalExecutor(1, command={COMMAND!r}).run([item]))
    """)
    parent = subprocess.Popen([sys.executable, "-c", script])
    deadline = time.monotonic() + 60
    while not ((tmp_path / "worker").exists() and (tmp_path / "worker").read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    worker = int((tmp_path / "worker").read_text().split()[0])

    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()

    while is_running(worker):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_task_of_a_worker_that_is_unknown_fails_with_its_output(tmp_path: Path) -> None:
    # The real worker.
    (found,) = LocalExecutor().run([WorkItem("a", {"do": "nothing"}, tmp_path / "log.txt")])

    assert found.error.startswith("KeyError: 'plugins'")
    assert json.dumps(found.item.task) == '{"do": "nothing"}'


def test_ray_that_is_not_installed_is_said_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    # What Python takes for a package that is not there.
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "detloom.study.ray_executor", raising=False)

    with pytest.raises(PluginError) as caught:
        importlib.import_module("detloom.study.ray_executor")

    assert str(caught.value) == (
        "--executor ray needs the package ray, which is not installed: pip install 'detloom[ray]', on every machine"
    )
