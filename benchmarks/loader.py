"""The training loader: pictures a second with mosaic, and where the time goes.

    python benchmarks/loader.py PATH [--split train] [--sizes 320 640] [--batches 12] [--json]

Everything runs in one process and one thread, and seconds are the processor's, so that other work on the
machine disturbs little. PATH is a data set that a bundled format recognises.
"""

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from detloom.data import augment
from detloom.data.loader import Loader
from detloom.data.records import Annotations
from detloom.data.settings import AugmentSettings
from detloom.data.splits import open_split

BATCH = 16
ROUNDS = 3


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    parser.add_argument("--split", default="train")
    parser.add_argument("--sizes", type=int, nargs="+", default=[320, 640])
    parser.add_argument("--batches", type=int, default=12)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    annotations = open_split(options.path, options.split, None)
    rows = []
    for size in options.sizes:
        rows.append({"what": "plain baseline", "size": size, **measure_plain(annotations, size, options.batches)})
        rows.extend(
            {"what": f"loader, cache {cache}", "size": size, **measure(annotations, size, cache, options.batches)}
            for cache in ("off", "ram")
        )
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in row.get("shares", {}).items())
        print(f"{row['size']:4}  {row['what']:18} {row['per_second']:7.0f} pictures/s   {shares}")


def measure(annotations: Annotations, size: int, cache: Any, batches: int) -> dict[str, Any]:
    """Return pictures a second, the median of some rounds, and the shares of the stages in one more."""
    loader = Loader(annotations, image_size=size, batch_size=BATCH, augment=AugmentSettings(), cache=cache)
    pictures = loader._batches.augmenter.store  # type: ignore[union-attr]  # noqa: SLF001 - a warm cache is measured
    if cache == "ram":
        for index in range(len(annotations.images)):
            pictures.load(index)

    def run() -> float:
        start = time.process_time()
        count = 0
        epoch = 0
        while count < batches:
            for _ in loader.epoch(epoch):
                count += 1
                if count == batches:
                    break
            epoch += 1
        return batches * BATCH / (time.process_time() - start)

    run()
    rates = [run() for _ in range(ROUNDS)]
    with stages() as seconds:
        total = batches * BATCH / run()
    shares = {name: spent / total for name, spent in seconds.items()}
    shares["boxes and batch"] = 1 - sum(shares.values())
    return {"per_second": statistics.median(rates), "rates": rates, "shares": shares}


@contextmanager
def stages() -> Iterator[dict[str, float]]:
    """Collect the seconds of the stages; they are functions of modules, so they can be wrapped."""
    seconds: dict[str, float] = defaultdict(float)
    wrapped = [
        (augment.Augmenter, "_paint", "decode and paint"),
        (augment, "resample", "resample"),
        (augment, "change_colour", "colour"),
        (augment, "mirror", "mirror"),
        (augment, "blend", "blend"),
    ]
    originals = [getattr(module, name) for module, name, _ in wrapped]
    for (module, name, stage), original in zip(wrapped, originals, strict=True):
        setattr(module, name, timed(original, stage, seconds))
    try:
        yield seconds
    finally:
        for (module, name, _), original in zip(wrapped, originals, strict=True):
            setattr(module, name, original)


def timed(function: Callable[..., Any], stage: str, seconds: dict[str, float]) -> Callable[..., Any]:
    """Return a function that adds its time to a stage."""

    def call(*args: Any, **settings: Any) -> Any:
        start = time.process_time()
        try:
            return function(*args, **settings)
        finally:
            seconds[stage] += time.process_time() - start

    return call


def measure_plain(annotations: Annotations, size: int, batches: int) -> dict[str, Any]:
    """Return pictures a second of a plain implementation of the published steps.

    Each sample decodes four pictures in full, paints a canvas of twice the size, warps it, changes its
    colours by lookup tables, mirrors it, and turns it to channels first.
    """
    generator = np.random.default_rng(0)

    def sample() -> torch.Tensor:
        canvas = np.full((2 * size, 2 * size, 3), 114, np.uint8)
        x, y = (int(value) for value in generator.uniform(size / 2, 3 * size / 2, 2))
        boxes = []
        for position, index in enumerate(generator.integers(len(annotations.images), size=4)):
            record = annotations.images[index]
            picture = cv2.imread(str(record.path))
            if picture is None:
                raise SystemExit(f"{record.path} cannot be read")
            ratio = size / max(picture.shape[:2])
            picture = cv2.resize(picture, (int(picture.shape[1] * ratio), int(picture.shape[0] * ratio)))
            height, width = picture.shape[:2]
            left, top = x - width * (position % 2 == 0), y - height * (position < 2)
            x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + width, 2 * size), min(top + height, 2 * size)
            canvas[y0:y1, x0:x1] = picture[y0 - top : y1 - top, x0 - left : x1 - left]
            boxes.append((record.boxes_N4 * ratio + (left, top, left, top)).clip(0, 2 * size))
        scale = generator.uniform(0.5, 1.6)
        shift = generator.uniform(0.4, 0.6, 2) * size - scale * size
        matrix = np.array(((scale, 0, shift[0]), (0, scale, shift[1])))
        warped = cv2.warpAffine(canvas, matrix, (size, size), borderValue=(114, 114, 114))
        for each in boxes:
            (each * scale + np.tile(shift, 2)).clip(0, size)
        hue, saturation, value = cv2.split(cv2.cvtColor(warped, cv2.COLOR_BGR2HSV))
        gains = 1 + generator.uniform(-1, 1, 3) * (0.015, 0.7, 0.4)
        ramp = np.arange(256)
        hue = cv2.LUT(hue, (ramp * gains[0] % 180).astype(np.uint8))
        saturation = cv2.LUT(saturation, (ramp * gains[1]).clip(0, 255).astype(np.uint8))
        value = cv2.LUT(value, (ramp * gains[2]).clip(0, 255).astype(np.uint8))
        picture = cv2.cvtColor(cv2.merge((hue, saturation, value)), cv2.COLOR_HSV2BGR)
        if generator.random() < 0.5:
            picture = np.fliplr(picture)
        return torch.from_numpy(np.ascontiguousarray(picture[..., ::-1].transpose(2, 0, 1)))

    def run() -> float:
        start = time.process_time()
        for _ in range(batches):
            torch.stack([sample() for _ in range(BATCH)])
        return batches * BATCH / (time.process_time() - start)

    run()
    rates = [run() for _ in range(ROUNDS)]
    return {"per_second": statistics.median(rates), "rates": rates}


if __name__ == "__main__":
    main()
