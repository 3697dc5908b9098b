"""The pictures that an export is calibrated and measured on, fitted on the whole canvas as evaluation fits them.

Shape letters: B images, H and W rows and columns.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from detloom.data.letterbox import Letterbox
from detloom.data.loader import Loader
from detloom.data.records import Annotations
from detloom.errors import ExportError
from detloom.scenes import draw_scene

__all__ = ["Pictures", "chosen", "drawn"]

BATCH = 16


@dataclass(frozen=True, slots=True, eq=False)
class Pictures:
    """Some pictures, and what tells them from others.

    Attributes:
        images_BCHW: RGB in [0, 1], float32, rows after rows.
        names: Of their files, in the same order.
        digest: SHA-256, in hexadecimal, over each name and the pixels of its canvas.
        source: Where they came from, in words.
    """

    images_BCHW: Tensor
    names: tuple[str, ...]
    digest: str
    source: str

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.names)


def chosen(annotations: Annotations, count: int, size: tuple[int, int], *, stride: int, seed: int = 0) -> Pictures:
    """Return a random choice of a split's pictures, the same for the same seed.

    Args:
        annotations: The split.
        count: How many, where there are as many.
        size: Height and width of the canvas.
        stride: The network's largest, of which these are multiples.
        seed: Of the choice.

    Raises:
        ExportError: There are none to choose.
        DataError: A picture cannot be read.
    """
    order = np.random.default_rng(seed).permutation(len(annotations.images))[:count].tolist()
    if not order:
        raise ExportError(f"{annotations.source}: there are no pictures to calibrate or measure on")
    images = tuple(annotations.images[index] for index in order)
    loader = Loader(replace(annotations, images=images), image_size=size, batch_size=BATCH, stride=stride, cache="off")
    pixels_BCHW = torch.cat([batch.images_BCHW for batch in loader.epoch(0)])
    source = f"{len(order)} of {len(annotations.images)} pictures of {annotations.source}, seed {seed}"
    return _pictures(pixels_BCHW, [image.path.name for image in images], source)


def drawn(count: int, size: tuple[int, int]) -> Pictures:
    """Return drawn pictures, always the same, for where there are none of one's own."""
    random = np.random.default_rng(0)
    scenes = [draw_scene(random).picture_HW3 for _ in range(count)]
    canvas_BHWC = np.stack([Letterbox.fit(each.shape[:2], size).apply(each) for each in scenes])
    names = [f"drawn-{index}" for index in range(count)]
    return _pictures(torch.from_numpy(canvas_BHWC).permute(0, 3, 1, 2), names, f"{count} drawn pictures")


def _pictures(pixels_BCHW: Tensor, names: Sequence[str], source: str) -> Pictures:
    digest = hashlib.sha256()
    for name, pixels_CHW in zip(names, pixels_BCHW, strict=True):
        digest.update(name.encode() + b"\0")
        digest.update(pixels_CHW.contiguous().numpy().tobytes())
    images_BCHW = pixels_BCHW.contiguous().float() / 255
    return Pictures(images_BCHW, tuple(names), digest.hexdigest(), source)
