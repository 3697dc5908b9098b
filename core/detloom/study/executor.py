"""Who does the work of a study: items go in, outcomes come out, in any order.

An executor need know nothing of studies: an item's task is plain data for ``detloom.study.work``, which any process
can do that sees the same files, and do again when it was cut off.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

__all__ = [
    "ERROR_MARK",
    "INTERRUPTED",
    "MISTAKE",
    "Executor",
    "LocalExecutor",
    "Outcome",
    "WorkItem",
    "num_cores",
    "visible_devices",
]

POLL = 0.05
PATIENCE = 120.0
"""Seconds that a run has to end its step when it is asked to."""
MISTAKE, INTERRUPTED = 2, 130
ERROR_MARK = "== error =="
"""What a process writes before a mistake that the user can mend."""


@dataclass(frozen=True, slots=True)
class WorkItem:
    """Something to do.

    Attributes:
        name: Of which it is told.
        task: What ``detloom.study.work.perform`` is given: JSON data.
        log: Where what it says is written.
    """

    name: str
    task: Mapping[str, Any]
    log: Path


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of it.

    Attributes:
        item: The item.
        error: What went wrong; empty where it was done.
    """

    item: WorkItem
    error: str = ""


class Executor(Protocol):
    """Does items, several at once where it can."""

    def run(self, items: Iterable[WorkItem]) -> Generator[Outcome, None, None]:
        """Yield the outcome of each item as it ends; when it is closed early, the others are stopped."""


@dataclass(slots=True)
class LocalExecutor:
    """Processes of this machine, each with its share of the cores; with several GPUs each has one.

    A process that crashes or is killed is one failed item. All of them end when the one that started them does,
    however it does.

    Args:
        jobs: How many at once.
        devices: The GPUs to deal out, as CUDA numbers them; empty leaves the environment as it is.
        keep_open: Files that the processes hold open, as a lock.
        command: What does a task that it is given on its standard input.
    """

    jobs: int = 1
    devices: tuple[str, ...] = ()
    keep_open: tuple[int, ...] = ()
    command: tuple[str, ...] = (sys.executable, "-m", "detloom.study.work")
    _running: dict[int, tuple[WorkItem, subprocess.Popen[bytes], IO[bytes]]] = field(default_factory=dict)

    def run(self, items: Iterable[WorkItem]) -> Generator[Outcome, None, None]:
        """Yield the outcome of each item as it ends."""
        waiting = iter(items)
        is_dry = False
        try:
            while True:
                while not is_dry and len(self._running) < self.jobs:
                    item = next(waiting, None)
                    if item is None:
                        is_dry = True
                    else:
                        self._start(item)
                if not self._running:
                    return
                yield from self._ended()
                time.sleep(POLL)
        finally:
            self._stop()

    def _start(self, item: WorkItem) -> None:
        slot = next(number for number in range(self.jobs) if number not in self._running)
        threads = str(max(1, num_cores() // self.jobs))
        environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)}
        if self.devices:
            environment["CUDA_VISIBLE_DEVICES"] = self.devices[slot % len(self.devices)]
        item.log.parent.mkdir(parents=True, exist_ok=True)
        log = item.log.open("ab")
        process = subprocess.Popen(  # noqa: S603 - our own module
            self.command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=environment,
            pass_fds=self.keep_open,
            # Ctrl-C is for the study, which asks its runs to stop.
            start_new_session=True,
        )
        assert process.stdin is not None  # noqa: S101 - it is a pipe
        # The pipe stays open: when its other end goes, the process does too.
        # One that has died already is found so when it is asked for.
        with suppress(BrokenPipeError):
            process.stdin.write(json.dumps(item.task).encode() + b"\n")
            process.stdin.flush()
        self._running[slot] = (item, process, log)

    def _ended(self) -> Iterator[Outcome]:
        for slot, (item, process, log) in list(self._running.items()):
            status = process.poll()
            if status is None:
                continue
            del self._running[slot]
            log.close()
            assert process.stdin is not None  # noqa: S101 - it is a pipe
            with suppress(BrokenPipeError):
                process.stdin.close()
            yield Outcome(item, _error(status, item.log))

    def _stop(self) -> None:
        """Ask what is running to stop after its step, and end what does not."""
        for _, process, _ in self._running.values():
            process.send_signal(signal.SIGINT)
        limit = time.monotonic() + PATIENCE
        for _, process, log in self._running.values():
            try:
                process.wait(max(0.0, limit - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            log.close()
        self._running.clear()


def num_cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_devices() -> tuple[str, ...]:
    """Return the GPUs that this process may use, as CUDA numbers them."""
    import torch

    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return tuple(each for each in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if each)
    return tuple(str(index) for index in range(torch.cuda.device_count()))


def _error(status: int, log: Path) -> str:
    if status == 0:
        return ""
    if status < 0:
        try:
            name = signal.Signals(-status).name
        except ValueError:
            name = str(-status)
        hint = " (was memory short?)" if name == "SIGKILL" else ""
        return f"the process was killed by {name}{hint}; its output: {log}"
    text = log.read_bytes().decode(errors="replace")
    if status == MISTAKE and ERROR_MARK in text:
        return text.rpartition(ERROR_MARK)[2].strip()
    if status == INTERRUPTED:
        return "it was interrupted"
    lines = text.strip().splitlines() or ["no output"]
    return f"{lines[-1]} (exit status {status}; its output: {log})"
