"""Commands of detloom, and the processes that they start, without the seconds that each needs for its imports.

This process imports everything once. For each line that it reads, ``{"arguments": [...], "out": path, "env": {...}}``,
it makes a copy of itself, which is the command, and writes its process id; for ``{"wait": id}`` it writes its exit
status. The command's workers are copies of it in turn, in the place of new interpreters. Apart from that they are
processes like others: they can be killed, and they end when what started them does.
"""

import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import accelerate
import albumentations
import hotcoco

import detloom.artifacts
import detloom.cli
import detloom.cli.ablate
import detloom.engine.evaluate
import detloom.engine.fit
import detloom.study.ablation
import detloom.study.writing
from detloom.study import executor, work

# Imported so that copies need not.
ONCE = (accelerate, albumentations, hotcoco, detloom)


class Copy:
    """A worker, as ``subprocess.Popen`` has it: a copy of this process that does a task on its standard input."""

    def __init__(self, _command: Any, *, stdout: Any, env: dict[str, str], pass_fds: Any, **_others: Any) -> None:
        reading, writing = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.setsid()
            become(reading, stdout.fileno(), keep=pass_fds, env=env, do=work.main)
        os.close(reading)
        self.stdin = os.fdopen(writing, "wb")
        self.status: int | None = None

    def poll(self) -> int | None:
        """Return the exit status of what has ended."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if pid else None
        return self.status

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status; the caller's own limit is the test's."""
        del timeout
        if self.status is None:
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.status

    def send_signal(self, number: int) -> None:
        """Send a signal to what runs."""
        if self.poll() is None:
            os.kill(self.pid, number)


def become(stdin: int, out: int, *, keep: Any, env: dict[str, str], do: Any) -> None:
    """Do something as a process of its own would, and end."""
    status = 1
    try:
        os.dup2(stdin, 0)
        os.dup2(out, 1)
        os.dup2(out, 2)
        for number in [int(each.name) for each in Path("/proc/self/fd").iterdir()]:
            if number > 2 and number not in keep:
                # The one that listed them is closed already.
                try:
                    os.close(number)
                except OSError:
                    continue
        sys.stdin = os.fdopen(0, "r", closefd=False)
        os.environ.clear()
        os.environ.update(env)
        do()
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    except BaseException:  # noqa: BLE001 - nothing may return into the loop below
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def main() -> None:
    """Start what each line of the standard input says."""
    alike = SimpleNamespace(Popen=Copy, PIPE=subprocess.PIPE, TimeoutExpired=subprocess.TimeoutExpired)
    vars(executor)["subprocess"] = alike
    # The time of a detector is no matter here.
    work.LONG_ENOUGH = 0.2
    # Without a buffer of lines, which copies would have, too.
    lines = os.fdopen(0, "rb", buffering=0, closefd=False)
    while line := lines.readline():
        asked = json.loads(line)
        if "wait" in asked:
            answer = os.waitstatus_to_exitcode(os.waitpid(asked["wait"], 0)[1])
        else:
            answer = os.fork()
            if not answer:
                sys.argv = ["detloom", *asked["arguments"]]
                out = os.open(asked["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
                nothing = os.open(os.devnull, os.O_RDONLY)
                become(nothing, out, keep=(), env=asked["env"], do=detloom.cli.main)
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    # The folder of this file is no place to import from.
    sys.path = [each for each in sys.path if Path(each or ".").resolve() != Path(__file__).resolve().parent]
    main()
