"""How long a user waits before anything happens: light verbs and imports, each in a fresh process.

    python benchmarks/startup.py [--repeats 5]

Medians in seconds of the whole process; the first run of each, which fills the disk's cache, is left
out. The interpreter's own start is the floor, torch's import the price that light verbs do not pay.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

CASES = {
    "python -c pass": ("-c", "pass"),
    "import detloom": ("-c", "import detloom"),
    "detloom --help": ("-m", "detloom", "--help"),
    "detloom list": ("-m", "detloom", "list"),
    "detloom show yolov7-tiny": ("-m", "detloom", "show", "yolov7-tiny"),
    "import torch": ("-c", "import torch"),
    "detloom.assemble imported": ("-c", "from detloom import assemble"),
    "detloom check yolov7-tiny": ("-m", "detloom", "check", "yolov7-tiny"),
}


def main() -> None:
    """Measure every case and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f}; medians and least of {options.repeats}, seconds")
    for name, arguments in CASES.items():
        times = [_seconds(arguments) for _ in range(options.repeats + 1)][1:]
        print(f"{name:28}{statistics.median(times):8.3f}{min(times):8.3f}")


def _seconds(arguments: tuple[str, ...]) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - the commands above
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
