"""The other environment: a process that compiles a network and keeps the simulator for it.

Shape letters: N pictures to calibrate on, B images, H and W rows and columns, h and w of a map.
"""

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from detloom.errors import ExportError, reason
from detloom.export.network import Network
from detloom_plugins.extras import missing_packages
from detloom_plugins.onnx_file import PACKAGES, write_checked

__all__ = ["PYTHON_VARIABLE", "Build", "missing_toolkit"]

PYTHON_VARIABLE = "DETLOOM_RKNN_PYTHON"
# What the toolkit's reader of ONNX takes at best.
OPSET = 12
TAIL = 12


def missing_toolkit() -> str | None:
    """Return one line that says what to install, or None."""
    if line := missing_packages("the exporter 'rknn'", PACKAGES, "onnx"):
        return line
    python = os.environ.get(PYTHON_VARIABLE, "")
    if not python:
        return (
            f"the exporter 'rknn' needs {PYTHON_VARIABLE}, the python of an environment with rknn-toolkit2 "
            "(docs/deployment.md says how to make one)"
        )
    if not _imports(python):
        return (
            f"the exporter 'rknn' needs rknn-toolkit2, and {PYTHON_VARIABLE}={python} cannot import rknn.api; install "
            "it there (docs/deployment.md says how)"
        )
    return None


@cache
def _imports(python: str) -> bool:
    try:
        done = subprocess.run([python, "-c", "import rknn.api"], capture_output=True, check=False)  # noqa: S603 - the interpreter that the user names
    except OSError:
        return False
    return done.returncode == 0


class Build:
    """A network that the toolkit has compiled; use as a context, or ``close`` it.

    Args:
        network: What to compile.
        pictures_NCHW: RGB in [0, 1], to find ranges with.
        chip: As the toolkit calls it.
        numbers: int8 or float16.
        method: The toolkit's quantisation algorithm.

    Attributes:
        model: The compiled file; it goes when this is closed.
        source: The ONNX file that it was compiled from; it goes, too.
        note: How far that one is from torch, as a sentence.
        version: Of the toolkit.
        log: What the toolkit printed.

    Raises:
        ExportError: The toolkit is missing, or refuses the network, or ONNX cannot express it.
    """

    def __init__(self, network: Network, pictures_NCHW: Tensor, *, chip: str, numbers: str, method: str) -> None:
        if complaint := missing_toolkit():
            raise ExportError(complaint)
        self._folder = tempfile.TemporaryDirectory(prefix="detloom-rknn-")
        self._place = Path(self._folder.name)
        self.model, self.source = self._place / "model.rknn", self._place / "model.onnx"
        self.note = write_checked(network, self.source, numbers="float32", opset=OPSET, dynamic_batch=False)
        self._num_maps = len(network.map_names)
        self._write_pictures(pictures_NCHW)
        with (self._place / "log.txt").open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 - the interpreter that the user names, and a script of ours
                [os.environ[PYTHON_VARIABLE], str(Path(__file__).with_name("worker.py"))],
                cwd=self._place,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                # Its packages are its own.
                env={key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")},
            )
        job = {
            "model": self.source.name,
            "chip": chip,
            "numbers": numbers,
            "calibration": "calibration.txt",
            "method": method,
            "out": self.model.name,
        }
        try:
            self.version: str = self._ask(json.dumps(job), f"cannot compile for {chip}")["version"]
        except ExportError:
            self.close()
            raise

    @property
    def log(self) -> str:
        """Return what the toolkit printed so far."""
        return (self._place / "log.txt").read_text(encoding="utf-8", errors="replace")

    def run(self, pixels_BHW3: NDArray[np.uint8]) -> Sequence[NDArray[np.float32]]:
        """Return the maps, ``[B, C, h, w]`` in real numbers, that the simulator gives of RGB pictures."""
        path = self._place / "pictures.npy"
        np.save(path, np.ascontiguousarray(pixels_BHW3))
        answer = self._ask(str(path), "the simulator failed")
        with np.load(answer["maps"]) as maps:
            return [maps[f"arr_{index}"].astype(np.float32) for index in range(self._num_maps)]

    def close(self) -> None:
        """End the process, and remove what it wrote."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def _write_pictures(self, pictures_NCHW: Tensor) -> None:
        pixels_NHW3 = (pictures_NCHW * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
        names = [f"{index:05}.png" for index in range(len(pixels_NHW3))]
        for name, pixels_HW3 in zip(names, pixels_NHW3, strict=True):
            cv2.imwrite(str(self._place / name), pixels_HW3[..., ::-1])
        (self._place / "calibration.txt").write_text("\n".join(names), encoding="utf-8")

    def _ask(self, line: str, failure: str) -> dict[str, Any]:
        assert self._process.stdin is not None  # noqa: S101 - narrows the type
        assert self._process.stdout is not None  # noqa: S101 - narrows the type
        try:
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except OSError as error:
            raise ExportError(f"rknn: {failure}: {reason(error)}\n{self._last_words()}") from error
        if not answer:
            raise ExportError(f"rknn: {failure}; the toolkit's last words:\n{self._last_words()}")
        found: dict[str, Any] = json.loads(answer)
        return found

    def _last_words(self) -> str:
        lines = [line for line in self.log.splitlines() if line.strip() and not line.startswith("D ")]
        return "\n".join(f"    {line}" for line in lines[-TAIL:])
