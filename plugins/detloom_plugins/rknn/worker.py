"""Compiles and simulates with rknn-toolkit2, in an environment of its own: run as a script, it imports nothing of ours.

The first line of standard input is a job as JSON; see ``main``. Each further line names a file of pictures, ``uint8
[B, H, W, 3]``, which are run in the simulator. Each answer is a line of JSON. What the toolkit itself prints goes to
standard error.
"""

import importlib.metadata
import json
import os
import sys
from typing import Any

import numpy as np
from rknn.api import RKNN


def main() -> None:
    """Do the job, then what follows it, until standard input ends.

    The job: ``model`` (ONNX), ``chip``, ``numbers`` (``int8`` or ``float16``), ``calibration`` (a file with the path of
    a picture on each line), ``method`` (the toolkit's quantisation algorithm) and ``out``.
    """
    answers = os.fdopen(os.dup(1), "w")
    # The toolkit and its libraries print; answers have a channel to themselves.
    os.dup2(2, 1)
    job = json.loads(sys.stdin.readline())
    rknn = RKNN(verbose=True)
    _done("config", _configured(rknn, job))
    _done("load_onnx", rknn.load_onnx(job["model"]))
    quantises = job["numbers"] == "int8"
    _done("build", rknn.build(do_quantization=quantises, dataset=job["calibration"] if quantises else None))
    _done("export_rknn", rknn.export_rknn(job["out"]))
    _done("init_runtime", rknn.init_runtime())
    version = importlib.metadata.version("rknn-toolkit2")
    print(json.dumps({"built": job["out"], "version": version}), file=answers, flush=True)
    for line in sys.stdin:
        pictures_BHW3 = np.load(line.strip())
        maps = [rknn.inference(inputs=[each[None]], data_format=["nhwc"]) for each in pictures_BHW3]
        path = line.strip() + ".maps.npz"
        # In the order of the outputs: numpy names them arr_0, arr_1 and so on.
        np.savez(path, *(np.concatenate(level) for level in zip(*maps, strict=True)))
        print(json.dumps({"maps": path}), file=answers, flush=True)
    rknn.release()


def _configured(rknn: Any, job: dict[str, Any]) -> int:
    code: int = rknn.config(
        mean_values=[[0, 0, 0]],
        std_values=[[255, 255, 255]],
        target_platform=job["chip"],
        quantized_method="channel",
        quantized_algorithm=job["method"],
    )
    return code


def _done(step: str, code: int) -> None:
    if code:
        sys.exit(f"rknn-toolkit2: {step} failed with code {code}")


if __name__ == "__main__":
    main()
