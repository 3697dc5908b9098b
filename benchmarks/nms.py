"""Time suppression beside a plain per-image one: ``python benchmarks/nms.py [--threads N] [--repeats N]``.

One image of 25,200 rows and 80 classes, threshold 0.001, IoU 0.65, several labels a box, as in
evaluation; and a batch of it. The plain implementation follows the published steps one by one on
decoded rows; its time leaves out the sigmoids, which ours takes in.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torchvision.ops import nms

from detloom.ops.nms import suppress
from detloom.structures import Predictions, Priors

ROWS, CLASSES, SIZE = 25_200, 80, 640
SCORE, OVERLAP, MOST, CANDIDATES = 0.001, 0.65, 300, 30_000


def synthetic(candidates: int, objects: int, images: int, generator: torch.Generator) -> Predictions:
    """Return predictions with about a number of rows above the threshold in each image.

    Boxes stray about some objects; no objects stands for boxes anywhere.
    """
    centers = torch.rand(images, ROWS, 2, generator=generator) * SIZE
    half = torch.rand(images, ROWS, 2, generator=generator) * 60 + 5
    if objects:
        which = torch.randint(objects, (images, ROWS), generator=generator)
        centers = centers[:, :objects].gather(1, which[..., None].expand(-1, -1, 2))
        half = half[:, :objects].gather(1, which[..., None].expand(-1, -1, 2))
        centers = centers + torch.randn(centers.shape, generator=generator) * 4
        half = half * torch.empty(half.shape).uniform_(0.8, 1.25, generator=generator)
    per_row = max(1, round(candidates / ROWS * 4))
    chosen = torch.rand(images, ROWS, generator=generator) < candidates / per_row / ROWS
    objectness = torch.where(chosen, torch.rand(images, ROWS, generator=generator) * 6 - 5, torch.tensor(-12.0))
    logits = torch.full((images, ROWS, CLASSES), -12.0)
    hot = torch.rand(images, ROWS, CLASSES, generator=generator).topk(per_row, -1).indices
    logits.scatter_(2, hot, torch.rand(hot.shape, generator=generator) * 6 - 1)
    priors = Priors.on_grids([(1, ROWS)], [8], torch.ones(1, 1, 2))
    return Predictions(torch.cat((centers - half, centers + half), -1), logits, objectness, priors)


def plain(decoded_PR: Tensor) -> Tensor:
    """Return the kept rows of an image, step by step."""
    rows = decoded_PR[decoded_PR[:, 4] > SCORE]
    scores = rows[:, 5:] * rows[:, 4:5]
    center, half = rows[:, :2], rows[:, 2:4] / 2
    boxes = torch.cat((center - half, center + half), 1)
    row, label = (scores > SCORE).nonzero(as_tuple=True)
    table = torch.cat((boxes[row], scores[row, label][:, None], label[:, None].float()), 1)
    if len(table) > CANDIDATES:
        table = table[table[:, 4].argsort(descending=True)[:CANDIDATES]]
    kept = nms(table[:, :4] + table[:, 5:] * 4096, table[:, 4], OVERLAP)
    return table[kept[:MOST]]


def decoded(predictions: Predictions) -> Tensor:
    """Return ``[B, P, 5 + C]`` rows of centre, size and probabilities."""
    boxes = predictions.boxes_BP4
    assert predictions.objectness_BP is not None  # noqa: S101 - made above
    center, size = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
    scores = predictions.class_logits_BPC.sigmoid()
    return torch.cat((center, size, predictions.objectness_BP.sigmoid()[..., None], scores), -1)


def median_seconds(work: Callable[[], object], repeats: int) -> float:
    """Return the median time of some calls, after one that is not counted."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    generator = torch.Generator().manual_seed(0)
    print(f"{'candidates':>10} {'boxes':>10} {'images':>6} {'plain s':>8} {'ours s':>8} {'ratio':>6}  same boxes")
    for candidates, images in ((4_000, 1), (21_000, 1), (111_000, 1), (21_000, 8)):
        for objects in (0, 30):
            predictions = synthetic(candidates, objects, images, generator)
            rows = decoded(predictions)

            def ours(predictions: Predictions = predictions) -> list[tuple[Tensor, Tensor, Tensor]]:
                kept = suppress(predictions, score=SCORE, overlap=OVERLAP, max_detections=MOST, multi_label=True)
                return kept.per_image()

            def theirs(rows: Tensor = rows) -> list[Tensor]:
                return [plain(each) for each in rows]

            scores = rows[..., 5:] * rows[..., 4:5]
            count = int((scores > SCORE).sum()) // images
            found, expected = ours()[0][1], theirs()[0][:, 4]
            same = int((found[: len(expected)] - expected[: len(found)]).abs().lt(1e-6).sum())
            baseline, own = median_seconds(theirs, arguments.repeats), median_seconds(ours, arguments.repeats)
            print(
                f"{count:>10} {'anywhere' if not objects else '30 objects':>10} {images:>6} {baseline:8.4f} {own:8.4f} "
                f"{own / baseline:6.3f}  {same}/{len(expected)}"
            )


if __name__ == "__main__":
    main()
