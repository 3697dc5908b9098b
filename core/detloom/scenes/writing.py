"""A folder of drawn pictures in the COCO format: ``images/``, ``annotations/train.json``, ``annotations/val.json``."""

import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from detloom.errors import DataError, reason
from detloom.scenes.compose import CLASSES, Scene, draw_scene

__all__ = ["write_scenes"]

# Raised whenever the drawing changes, so that old pictures are never taken for new ones.
DRAWING = 1
RECORD = "scenes.json"
PARTIAL = ".partial"


def write_scenes(
    folder: Path,
    *,
    train: int = 800,
    val: int = 100,
    unseen: int = 8,
    seed: int = 0,
    report: Callable[[int, int], None] | None = None,
) -> Path:
    """Write a data set of drawn pictures, all of it or nothing, and return its folder.

    The same numbers give the same pictures; what is already there is not drawn again.

    Args:
        folder: Where to write; its parents are made.
        train: Number of pictures to learn from.
        val: Number of pictures to evaluate on.
        unseen: Number of pictures in ``unseen/``, without labels, to try a detector on.
        seed: Chooses the pictures; each is drawn from ``seed``, its part and its number alone.
        report: Called with the number of pictures done and to be done.

    Raises:
        DataError: The folder holds something else, or cannot be written.
    """
    record = {"drawing": DRAWING, "seed": seed, "train": train, "val": val, "unseen": unseen}
    if folder.exists():
        _demand_same(folder, record)
        return folder
    _sweep(folder)
    partial_folder = folder.parent / f".{folder.name}.{os.getpid()}{PARTIAL}"
    try:
        _write_all(partial_folder, record, report or (lambda _done, _total: None))
        partial_folder.rename(folder)
    except OSError as error:
        raise DataError(
            f"{folder}: the pictures cannot be written: {reason(error)}.\n"
            "  Choose a folder that can be written, on a disk with about 30 MB left."
        ) from error
    finally:
        shutil.rmtree(partial_folder, ignore_errors=True)
    return folder


def _sweep(folder: Path) -> None:
    """Remove what processes that were killed had begun to write for a folder."""
    start = f".{folder.name}."
    for path in folder.parent.glob(f".*{PARTIAL}"):
        number = path.name.removeprefix(start).removesuffix(PARTIAL)
        if path.name.startswith(start) and number.isdecimal() and not _is_running(int(number)):
            shutil.rmtree(path, ignore_errors=True)


def _is_running(process: int) -> bool:
    if os.name != "posix":
        # Elsewhere asking by a signal would end the process.
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _demand_same(folder: Path, record: dict[str, int]) -> None:
    try:
        found = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if found == record:
        return
    what = "was drawn with other numbers" if found else "was not drawn here"
    raise DataError(f"{folder}: exists, and {what}.\n  Name a folder that does not exist yet, or delete this one.")


def _write_all(folder: Path, record: dict[str, int], report: Callable[[int, int], None]) -> None:
    parts = {"train": record["train"], "val": record["val"], "unseen": record["unseen"]}
    total = sum(parts.values())
    done = 0
    for name in ("images", "annotations", "unseen"):
        (folder / name).mkdir(parents=True)
    pool = ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1))
    try:
        for part_index, (part, count) in enumerate(parts.items()):
            images: list[dict[str, Any]] = []
            annotations: list[dict[str, Any]] = []
            where = folder / ("unseen" if part == "unseen" else "images")
            draw = partial(_draw_one, where, part, (record["seed"], part_index))
            for index, (name, scene) in enumerate(pool.map(draw, range(count))):
                _add_rows(images, annotations, index + 1, name, scene)
                done += 1
                report(done, total)
            if part != "unseen":
                _write_json(folder / "annotations" / f"{part}.json", _coco(images, annotations, record))
    finally:
        pool.shutdown(cancel_futures=True)
    _write_json(folder / RECORD, record)


def _draw_one(folder: Path, part: str, seed: tuple[int, int], index: int) -> tuple[str, Scene]:
    rng = np.random.default_rng((*seed, index))
    scene = draw_scene(rng)
    name = f"{part}_{index:04d}.jpg"
    quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(86, 96))]
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(scene.picture_HW3, cv2.COLOR_RGB2BGR), quality)
    (folder / name).write_bytes(encoded.tobytes())
    return name, scene


def _add_rows(
    images: list[dict[str, Any]], annotations: list[dict[str, Any]], image_id: int, name: str, scene: Scene
) -> None:
    height, width = scene.picture_HW3.shape[:2]
    images.append({"id": image_id, "file_name": name, "height": height, "width": width})
    labelled = zip(scene.boxes_N4.tolist(), scene.labels_N.tolist(), scene.area_N.tolist(), strict=True)
    for (x0, y0, x1, y1), label, area in labelled:
        annotations.append(
            {
                "id": len(annotations) + 1,
                "image_id": image_id,
                "category_id": label + 1,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": area,
                "iscrowd": 0,
            }
        )


def _coco(images: list[dict[str, Any]], annotations: list[dict[str, Any]], record: dict[str, int]) -> dict[str, Any]:
    return {
        "info": {"description": "Tables with things on them, drawn by detloom", **record},
        "licenses": [],
        "categories": [{"id": index + 1, "name": name} for index, name in enumerate(CLASSES)],
        "images": images,
        "annotations": annotations,
    }


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
