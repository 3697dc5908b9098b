"""Many machines do the work of a study, as tasks of a Ray cluster; they share a folder, in which everything lies.

A task starts the same process as on one machine, and waits for it. When the task's worker or its machine dies, that
process dies, too, and Ray gives the task to another worker, where the run goes on from its last state. So what is done
is known from the folder alone, and nothing can be in the result twice.

Imported only when asked for: needs the extra ``ray``.
"""

import json
import os
import secrets
import signal
import socket
import time
from collections.abc import Generator, Iterable, Mapping
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any

from detloom.durable import write_text
from detloom.errors import ArtifactError, PluginError, RecipeError
from detloom.study.executor import PATIENCE, LocalExecutor, Outcome, WorkItem

try:
    import ray
    from ray.exceptions import GetTimeoutError, RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError as error:
    raise PluginError(
        "--executor ray needs the package ray, which is not installed: pip install 'detloom[ray]', on every machine"
    ) from error

__all__ = ["RayExecutor", "share_of"]

AGAIN = 20
"""How often an item is given to another worker when its worker, or its machine, is lost."""
LOOK, CANCEL = 0.5, 2.0
REACH, ANSWER = 10.0, 60.0
"""Seconds within which the cluster must be reached, and every machine say that it sees the folder."""
GONE = 30.0
"""Seconds in which the process of a lost worker must have let go of its run."""
PACKAGES = ("detloom", "torch", "ray")


class RayExecutor:
    """A Ray cluster's machines, each with some items at once; an item has its share of cores and GPUs.

    An item whose process fails or crashes is one failed item, as on one machine. One whose worker or machine is lost
    is done again elsewhere.

    Args:
        address: Of the cluster, ``host:port``; ``auto`` is the one that runs on this machine.
        shared: The study's directory, which every machine must see under the same path, as it must the data.
        jobs: Items at once on each machine.
        command: What does a task that it is given on its standard input; empty for our own.
    """

    def __init__(self, address: str = "auto", *, shared: Path, jobs: int = 1, command: tuple[str, ...] = ()) -> None:
        self.address = address
        self.shared = shared
        self.jobs = jobs
        self.command = command

    def run(self, items: Iterable[WorkItem]) -> Generator[Outcome, None, None]:
        """Yield the outcome of each item as it ends; when it is closed early, the others are stopped.

        Raises:
            RecipeError: There is no cluster at the address.
            ArtifactError: A machine does not see the folder.
            PluginError: A machine has another version of a package.
        """
        todo = list(items)
        if not todo:
            return
        from detloom.engine.run import LOCK

        was_connected = ray.is_initialized()
        if not was_connected:
            _connect(self.address)
        for old in self.shared.glob(".token-*"):  # of a command that was killed
            old.unlink(missing_ok=True)
        token = self.shared / f".token-{secrets.token_hex(4)}"
        place: dict[str, Any] = {
            "folder": str(Path.cwd()),
            "token": str(token.resolve()),
            "text": secrets.token_hex(16),
            "lock": LOCK,
            "command": self.command,
            "versions": {name: version(name) for name in PACKAGES},
        }
        try:
            write_text(token, place["text"])
            cores, gpus = share_of([each["Resources"] for each in _machines()], self.jobs)
            _check_machines(place)
            place["threads"] = os.environ.get("OMP_NUM_THREADS", str(cores))
            yield from _outcomes(todo, place, cores, gpus)
        finally:
            token.unlink(missing_ok=True)
            if not was_connected:
                ray.shutdown()


def share_of(machines: Iterable[Mapping[str, float]], jobs: int) -> tuple[int, float]:
    """Return the cores and GPUs of an item, the same on all machines, so that its sums are rounded alike on each.

    Where some machines have GPUs, those without get no item.

    >>> share_of([{"CPU": 8}, {"CPU": 4}], 2)
    (2, 0.0)
    >>> share_of([{"CPU": 8, "GPU": 2}, {"CPU": 16, "GPU": 1}, {"CPU": 64}], 2)
    (4, 0.5)
    """
    able = [each for each in machines if each.get("CPU", 0) >= 1]
    able = [each for each in able if each.get("GPU", 0)] or able
    if not able:
        raise RecipeError("no machine of the Ray cluster has a processor to offer; start one with `ray start`")
    cores = max(1, int(min(each["CPU"] for each in able)) // jobs)
    return cores, min(1.0, min(each.get("GPU", 0) for each in able) / jobs)


def _connect(address: str) -> None:
    host, colon, port = address.rpartition(":")
    try:
        if colon and port.isdigit() and "/" not in host:
            # Ray itself tries for minutes.
            socket.create_connection((host, int(port)), timeout=REACH).close()
        ray.init(address=address, log_to_driver=False, logging_level="error")
    except (OSError, RuntimeError, ValueError, RayError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RecipeError(
            f"--address {address}: there is no Ray cluster to be reached: {first}\n"
            "  `ray start --head` begins one on this machine and prints its address; "
            "`ray start --address HOST:PORT` adds another machine."
        ) from error


def _machines() -> list[dict[str, Any]]:
    return [each for each in ray.nodes() if each["Alive"]]


def _check_machines(place: Mapping[str, Any]) -> None:
    ask = ray.remote(_objection)
    asked = {
        each["NodeManagerAddress"] + " " + each["NodeID"][:6]: ask.options(
            num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(each["NodeID"], soft=False)
        ).remote(place)
        for each in _machines()
        if each["Resources"].get("CPU", 0) >= 1
    }
    complaints = []
    deadline = time.monotonic() + ANSWER
    for name, answer in asked.items():
        try:
            said = ray.get(answer, timeout=max(1.0, deadline - time.monotonic()))
        except GetTimeoutError:
            said = f"it gave no answer in {ANSWER:.0f} s"
        except RayError as error:
            # Its last line is the exception that a traceback ends with.
            said = f"it cannot do our work: {str(error).strip().splitlines()[-1]}"
        if said:
            complaints.append(f"machine {name}: {said}")
    if complaints:
        raise ArtifactError(
            "\n".join(complaints) + "\n  All machines of the cluster must see the study's folder and the data under "
            "the same paths (as by NFS), and have the same packages installed."
        )


def _objection(place: Mapping[str, Any]) -> str:
    """Return, on a machine of the cluster, why it cannot do an item, or nothing."""
    other = {name: own for name in place["versions"] if (own := version(name)) != place["versions"][name]}
    if other:
        return ", ".join(f"it has {name} {own}, not {place['versions'][name]}" for name, own in other.items())
    folder = place["folder"]
    if not Path(folder).is_dir():
        return f"it has no folder {folder}, in which the command was given"
    try:
        is_shared = Path(place["token"]).read_text(encoding="utf-8") == place["text"]
    except OSError:
        is_shared = False
    return "" if is_shared else f"it does not see the study's folder: {place['token']} is not there"


def _outcomes(
    items: Iterable[WorkItem], place: Mapping[str, Any], cores: int, gpus: float
) -> Generator[Outcome, None, None]:
    task = ray.remote(_do).options(num_cpus=cores, num_gpus=gpus, max_retries=AGAIN)
    running = {task.remote(item.name, json.dumps(item.task), str(item.log), place): item for item in items}
    try:
        while running:
            ended, _ = ray.wait(list(running), num_returns=1, timeout=LOOK)
            for answer in ended:
                yield Outcome(running.pop(answer), _error(answer))
    finally:
        _cancel(list(running))


def _cancel(answers: list[Any]) -> None:
    """Have all tasks end after their step, and end what does not."""
    deadline = time.monotonic() + PATIENCE
    while answers and time.monotonic() < deadline:
        # Again and again: a task that is just being started does not hear it.
        for answer in answers:
            ray.cancel(answer)
        _, answers = ray.wait(answers, num_returns=len(answers), timeout=CANCEL)
    for answer in answers:
        ray.cancel(answer, force=True)


def _error(answer: Any) -> str:
    try:
        return str(ray.get(answer))
    except RayError as error:
        return f"the cluster lost it {AGAIN + 1} times, or could not start it: {str(error).strip().splitlines()[-1]}"


def _do(name: str, task: str, log: str, place: Mapping[str, Any]) -> str:
    """Do an item on a machine of the cluster; return what went wrong."""
    # A machine that joined the cluster after the others were asked.
    objection = _objection(place)
    if objection:
        return f"on {os.uname().nodename}: {objection}"
    os.chdir(place["folder"])
    os.environ["OMP_NUM_THREADS"] = place["threads"]
    # Ray's workers block it, and so would their processes, which are asked to stop by it.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    signal.signal(signal.SIGINT, _interrupt_once)
    item = WorkItem(name, json.loads(task), Path(log))
    _wait_for(Path(item.task["out"]) / place["lock"])
    # Closed when the task is cancelled, so that the process ends its step and keeps its state.
    local = LocalExecutor(1, command=place["command"]) if place["command"] else LocalExecutor(1)
    with closing(local.run([item])) as outcomes:
        return next(outcomes).error


def _interrupt_once(*_: Any) -> None:
    """Cancel the task; while its process ends its step, nothing more is heard."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def _wait_for(lock: Path) -> None:
    """Wait until the process of a worker that was lost has let go of the run."""
    import fcntl  # Ray's machines are no Windows.

    deadline = time.monotonic() + GONE
    while time.monotonic() < deadline:
        try:
            with lock.open("r+", encoding="utf-8") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.1)
        except FileNotFoundError:  # It was not begun.
            return
        else:
            return
