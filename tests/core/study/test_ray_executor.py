"""A Ray cluster of two machines, which are processes here: what is killed is done again, and nothing twice.

Needs the extra ``ray``, which is no part of ``test``.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from detloom.cli import cli
from detloom.errors import ArtifactError, RecipeError
from detloom.scenes import write_scenes
from detloom.study.executor import WorkItem

pytest.importorskip("ray", reason="Ray is not installed: pip install 'detloom[ray]'")

import ray
from ray.cluster_utils import Cluster

from detloom.study import ray_executor
from detloom.study.ray_executor import RayExecutor, share_of

STUDY = """
recipe = "yolov7-tiny"
data = "data"
seeds = [0, 1]
resamples = 100

[cells.plain]
[cells.atss]
assigner = "atss"

[overrides]
"backbone.stem" = [[3, 2, 8], [3, 2, 8]]
"backbone.hidden" = [8, 8, 8, 8]
"backbone.widths" = [8, 16, 16, 16]
"neck.hidden" = [8, 8, 8]
"neck.widths" = [8, 8, 8]
"neck.outputs" = [16, 16, 16]
"data.image_size" = 64
"train.epochs" = 2
"train.batch" = 4
"train.nominal_batch" = 4
"train.warmup_epochs" = 0.0
"train.warmup_min_steps" = 0
"train.precision" = "float32"
"train.checkpoint_minutes" = 1e-9
"""
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
# What a worker's process does: no import of torch.
WORKER = """
import json, os, sys, threading, time
task = json.loads(sys.stdin.buffer.readline())
threading.Thread(target=lambda: (sys.stdin.buffer.read(), os._exit(130)), daemon=True).start()
with open(task["out"], "a") as file: file.write(f"{os.getpid()} {os.getppid()}\\n")
try: time.sleep(task["seconds"])
except KeyboardInterrupt:
    with open(task["out"], "a") as file: file.write("asked to stop\\n")
    os._exit(130)
os._exit(0)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Return a cluster of two nodes with one processor each."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**ENVIRONMENT, "RAY_USAGE_STATS_ENABLED": "0"}.items():
            patch.setenv(name, value)
        small = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 80 * 2**20, "include_dashboard": False}
        made = Cluster(initialize_head=True, head_node_args=small)
        made.add_node(**small)
        yield made
        made.shutdown()


def until(is_so: Any, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.slow
def test_study_whose_worker_was_killed_has_the_table_of_one_machine(cluster: Cluster, tmp_path: Path) -> None:
    write_scenes(tmp_path / "data", train=12, val=4, unseen=0)
    (tmp_path / "small.toml").write_text(STUDY, encoding="utf-8")
    command = [sys.executable, "-m", "detloom", "ablate", "small.toml", "-o"]
    about: dict[str, Any] = {"cwd": tmp_path, "env": {**os.environ, **ENVIRONMENT}, "stderr": subprocess.PIPE}
    alone = subprocess.run([*command, "alone"], **about, stdout=subprocess.DEVNULL, check=False)
    assert alone.returncode == 0, alone.stderr

    started = subprocess.Popen(
        [*command, "many", "--executor", "ray", "--address", cluster.address], **about, stdout=subprocess.DEVNULL
    )
    first = tmp_path / "many" / "cells" / "atss" / "seed-0"
    until((first / "state.safetensors").exists)
    worker = int((first / ".lock").read_text())
    task = int(Path(f"/proc/{worker}/status").read_text().partition("PPid:")[2].split()[0])
    assert b"ray::" in Path(f"/proc/{task}/cmdline").read_bytes()
    os.kill(task, signal.SIGKILL)
    _, said = started.communicate(timeout=400)

    assert started.returncode == 0, said
    # Its process died with it, and another went on.
    until(lambda: not Path(f"/proc/{worker}").exists(), 10)
    assert int((first / ".lock").read_text()) != worker
    assert said.count(b": finished\n") == 4
    kept = ("name", "status", "AP", "difference", "statement", "parameters", "gflops")
    tables = [
        [{key: cell[key] for key in kept} for cell in json.loads((tmp_path / out / "report.json").read_text())["cells"]]
        for out in ("alone", "many")
    ]
    assert tables[0] == tables[1]
    runs = [path.relative_to(tmp_path / "alone") for path in tmp_path.glob("alone/cells/*/seed-*/last.safetensors")]
    assert len(runs) == 4
    for run in runs:
        mine, others = load_file(tmp_path / "many" / run), load_file(tmp_path / "alone" / run)
        assert mine.keys() == others.keys()
        assert all(torch.equal(mine[name], others[name]) for name in mine)
        # Each epoch once.
        lines = (tmp_path / "many" / run).with_name("metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["epoch"] for line in lines] == [1, 2]
    assert list((tmp_path / "many").glob(".token*")) == []


@pytest.fixture
def executor(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RayExecutor]:
    """Return an executor of the cluster, which is left when the test ends."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    yield RayExecutor(cluster.address, shared=tmp_path)
    ray.shutdown()


def item(tmp_path: Path, name: str, seconds: float = 0) -> WorkItem:
    return WorkItem(name, {"do": "sleep", "out": str(tmp_path / name), "seconds": seconds}, tmp_path / f"{name}.txt")


@pytest.mark.slow
def test_real_worker_tells_what_went_wrong(executor: RayExecutor, tmp_path: Path) -> None:
    found = list(executor.run([WorkItem("a", {"do": "nothing", "out": str(tmp_path / "a")}, tmp_path / "a.txt")]))

    assert [each.error.partition(" (exit")[0] for each in found] == ["KeyError: 'recipe'"]


@pytest.mark.slow
def test_closing_early_asks_what_is_running_to_stop(executor: RayExecutor, tmp_path: Path) -> None:
    executor.command = (sys.executable, "-c", WORKER)
    found = executor.run([item(tmp_path, "quick"), item(tmp_path, "slow", 100), item(tmp_path, "never", 100)])
    assert next(found).item.name == "quick"
    until((tmp_path / "slow").exists)

    found.close()

    assert (tmp_path / "slow").read_text().splitlines()[1:] == ["asked to stop"]
    assert not ray.is_initialized()


@pytest.mark.slow
def test_machine_that_does_not_see_the_folder_is_named(
    executor: RayExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if the file were written to a disk that no other machine has.
    monkeypatch.setattr(ray_executor, "write_text", lambda _path, _text: None)

    with pytest.raises(ArtifactError) as caught:
        next(executor.run([item(tmp_path, "a")]))

    said = str(caught.value).splitlines()
    assert len(said) == 3
    assert all("it does not see the study's folder: " in line for line in said[:2])
    assert "under the same paths" in said[2]
    assert not (tmp_path / "a").exists()


def test_share_is_that_of_the_smallest_machine_and_never_nothing() -> None:
    assert share_of([{"CPU": 2}, {"CPU": 3}], 4) == (1, 0.0)
    assert share_of([{"CPU": 8, "GPU": 4}, {"CPU": 1}], 2) == (4, 1.0)
    with pytest.raises(RecipeError, match="no machine of the Ray cluster has a processor"):
        share_of([{}], 1)


@pytest.mark.slow
def test_no_cluster_at_the_address_is_said_in_a_line_or_two(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"--address 127\.0\.0\.1:1: there is no Ray cluster to be reached"):
        next(RayExecutor("127.0.0.1:1", shared=tmp_path).run([item(tmp_path, "a")]))


def test_address_without_ray_is_refused() -> None:
    result = CliRunner().invoke(cli, ["ablate", "a.toml", "--address", "here:1"])

    assert result.exit_code == 2
    assert "add --executor ray" in result.output
