"""Assignment and losses beside a plain per-image reference, in the same run.

The reference is the published maths written straightforwardly: one image after the other, the class
costs of every pair of target and candidate in full, one target after the other where it takes its own.

    python benchmarks/assigners.py [--batch 16] [--size 640] [--classes 80] [--threads 1]

Shape letters: see ``detloom.structures``; N candidates of an image, G targets of an image.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from detloom.interfaces import Assigner
from detloom.ops.boxes import cxcywh_to_xyxy
from detloom.structures import Assignment, Predictions, Priors, Targets
from detloom_plugins.atss import AtssAssigner
from detloom_plugins.dynamic_k import Yolov7Assigner
from detloom_plugins.yolov7_criterion import Yolov7Criterion

STRIDES = (8, 16, 32)
ANCHORS_LA2 = torch.tensor(
    [
        [[12.0, 16.0], [19.0, 36.0], [40.0, 28.0]],
        [[36.0, 75.0], [76.0, 55.0], [72.0, 146.0]],
        [[142.0, 110.0], [192.0, 243.0], [459.0, 401.0]],
    ]
)


def random_case(batch: int, size: int, classes: int, objects: list[int]) -> tuple[Predictions, Targets]:
    """Return predictions near their anchors, and as many objects an image as listed, of sizes as in photographs."""
    generator = torch.Generator().manual_seed(0)
    priors = Priors.on_grids([(size // s, size // s) for s in STRIDES], STRIDES, ANCHORS_LA2)
    shape = (batch, priors.num_priors)
    center_BP2 = priors.centers_P2 + (torch.rand((*shape, 2), generator=generator) * 2 - 1) * priors.strides_P[:, None]
    size_BP2 = priors.sizes_P2 * (torch.randn((*shape, 2), generator=generator) * 0.4).exp()
    predictions = Predictions(
        cxcywh_to_xyxy(torch.cat((center_BP2, size_BP2), dim=-1)),
        torch.randn((*shape, classes), generator=generator) - 3,
        torch.randn(shape, generator=generator) - 3,
        priors,
    )
    boxes, labels = [], []
    for count in objects:
        side_N2 = size * (torch.rand((count, 2), generator=generator) * 3 - 4).exp()
        center_N2 = side_N2 / 2 + torch.rand((count, 2), generator=generator) * (size - side_N2)
        boxes.append(cxcywh_to_xyxy(torch.cat((center_N2, side_N2), dim=-1)))
        labels.append(torch.randint(0, classes, (count,), generator=generator))
    return predictions, Targets.from_lists(boxes, labels, (size, size))


def plain_iou(a_N4: Tensor, b_M4: Tensor) -> Tensor:
    """Return the overlaps of every ``a`` with every ``b``."""
    low_NM2 = torch.maximum(a_N4[:, None, :2], b_M4[:, :2])
    high_NM2 = torch.minimum(a_N4[:, None, 2:], b_M4[:, 2:])
    shared_NM = (high_NM2 - low_NM2).clamp(min=0).prod(dim=2)
    area_N, area_M = (a_N4[:, 2:] - a_N4[:, :2]).prod(dim=1), (b_M4[:, 2:] - b_M4[:, :2]).prod(dim=1)
    return shared_NM / (area_N[:, None] + area_M - shared_NM)


def plain_candidates(priors: Priors, boxes_T4: Tensor, image_T: Tensor) -> tuple[Tensor, Tensor]:
    """Return image and prior of each candidate, one level after the other."""
    images, chosen = [], []
    for grid in priors.grids:
        size_A2 = priors.sizes_P2[grid.start : grid.start + grid.per_cell]
        center_T2, extent_T2 = (boxes_T4[:, :2] + boxes_T4[:, 2:]) / 2 / grid.stride, boxes_T4[:, 2:] - boxes_T4[:, :2]
        ratio_AT2 = extent_T2 / size_A2[:, None]
        anchor_K, target_K = (torch.maximum(ratio_AT2, 1 / ratio_AT2).amax(dim=2) < 4).nonzero(as_tuple=True)
        center_K2 = center_T2[target_K]
        limit_2 = torch.tensor([grid.width, grid.height])
        opposite_K2 = limit_2 - center_K2
        near_K2 = (center_K2 % 1 < 0.5) & (center_K2 > 1)
        far_K2 = (opposite_K2 % 1 < 0.5) & (opposite_K2 > 1)
        steps = [(torch.ones_like(near_K2[:, 0]), (0.0, 0.0)), (near_K2[:, 0], (-0.5, 0.0))]
        steps += [(near_K2[:, 1], (0.0, -0.5)), (far_K2[:, 0], (0.5, 0.0)), (far_K2[:, 1], (0.0, 0.5))]
        for keep_K, step in steps:
            cell_K2 = (center_K2[keep_K] + torch.tensor(step)).long()
            cell_K2 = torch.minimum(cell_K2.clamp(min=0), limit_2 - 1)
            cell_K = cell_K2[:, 1] * grid.width + cell_K2[:, 0]
            chosen.append(grid.start + cell_K * grid.per_cell + anchor_K[keep_K])
            images.append(image_T[target_K[keep_K]])
    return torch.cat(images), torch.cat(chosen)


@torch.no_grad()
def plain_yolov7(predictions: Predictions, targets: Targets) -> Assignment:
    """Return the matches of YOLOv7, one image and one target after the other."""
    objectness_BP = predictions.objectness_BP
    if objectness_BP is None:
        raise ValueError("the reference is that of heads with objectness")
    image_K, prior_K = plain_candidates(predictions.priors, targets.boxes_T4, targets.image_T)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for image in range(predictions.num_images):
        prior_N, target_G = prior_K[image_K == image], (targets.image_T == image).nonzero()[:, 0]
        if len(prior_N) == 0 or len(target_G) == 0:
            continue
        iou_GN = plain_iou(targets.boxes_T4[target_G], predictions.boxes_BP4[image, prior_N])
        k_G = iou_GN.topk(min(10, len(prior_N)), dim=1).values.sum(dim=1).int().clamp(min=1)
        class_GNC = predictions.class_logits_BPC[image, prior_N].sigmoid()[None].repeat(len(target_G), 1, 1)
        objectness_GN1 = objectness_BP[image, prior_N].sigmoid()[None, :, None].repeat(len(target_G), 1, 1)
        score_GNC = (class_GNC * objectness_GN1).sqrt()
        wanted_GC = functional.one_hot(targets.labels_T[target_G], predictions.num_classes).float()
        wanted_GNC = wanted_GC[:, None].repeat(1, len(prior_N), 1)
        logits_GNC = (score_GNC / (1 - score_GNC)).log()
        cost_GN = functional.binary_cross_entropy_with_logits(logits_GNC, wanted_GNC, reduction="none").sum(dim=2)
        cost_GN = cost_GN - 3 * (iou_GN + 1e-8).log()
        taken_GN = torch.zeros_like(cost_GN)
        for row in range(len(target_G)):
            taken_GN[row, cost_GN[row].topk(int(k_G[row]), largest=False).indices] = 1
        contested_N = taken_GN.sum(dim=0) > 1
        if contested_N.any():
            cheapest = cost_GN[:, contested_N].argmin(dim=0)
            taken_GN[:, contested_N] = 0
            taken_GN[cheapest, contested_N.nonzero()[:, 0]] = 1
        column_M = (taken_GN.sum(dim=0) > 0).nonzero()[:, 0]
        row_M = taken_GN[:, column_M].argmax(dim=0)
        found.append((torch.full_like(column_M, image), prior_N[column_M], target_G[row_M]))
    image_M, prior_M, target_M = (torch.cat(column) for column in zip(*found, strict=True))
    return Assignment(image_M, prior_M, target_M, torch.ones(len(image_M)))


@torch.no_grad()
def plain_atss(predictions: Predictions, targets: Targets) -> Assignment:
    """Return the matches of ATSS, one image after the other, distances to all priors."""
    priors = predictions.priors
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for image in range(predictions.num_images):
        target_G = (targets.image_T == image).nonzero()[:, 0]
        if len(target_G) == 0:
            continue
        boxes_G4 = targets.boxes_T4[target_G]
        iou_PG = plain_iou(priors.boxes_P4, boxes_G4)
        distance_PG = (priors.centers_P2[:, None] - (boxes_G4[:, :2] + boxes_G4[:, 2:]) / 2).square().sum(dim=2).sqrt()
        nearest = [
            grid.start + distance_PG[grid.span].topk(9 * grid.per_cell, dim=0, largest=False).indices
            for grid in priors.grids
        ]
        prior_KG = torch.cat(nearest)
        iou_KG = iou_PG.gather(0, prior_KG)
        center_KG2 = priors.centers_P2[prior_KG]
        is_inside_KG = ((center_KG2 > boxes_G4[:, :2]) & (center_KG2 < boxes_G4[:, 2:])).all(dim=2)
        is_positive_KG = (iou_KG >= iou_KG.mean(dim=0) + iou_KG.std(dim=0)) & is_inside_KG
        best_PG = torch.full_like(iou_PG, -1.0).scatter(0, prior_KG, torch.where(is_positive_KG, iou_KG, -1.0))
        best_P, row_P = best_PG.max(dim=1)
        prior_M = (best_P >= 0).nonzero()[:, 0]
        found.append((torch.full_like(prior_M, image), prior_M, target_G[row_P[prior_M]]))
    image_M, prior_M, target_M = (torch.cat(column) for column in zip(*found, strict=True))
    return Assignment(image_M, prior_M, target_M, torch.ones(len(image_M)))


def milliseconds(work: Callable[[], object], *, repeats: int = 9, limit_s: float = 6.0) -> float:
    """Return the median time of a piece of work, after once without measuring."""
    work()
    taken: list[float] = []
    begin = time.perf_counter()
    while len(taken) < repeats and (len(taken) < 3 or time.perf_counter() - begin < limit_s):
        start = time.perf_counter()
        work()
        taken.append(1000 * (time.perf_counter() - start))
    return statistics.median(taken)


def agreement(a: Assignment, b: Assignment) -> float:
    """Return the share of the matches that both have."""

    def rows(given: Assignment) -> set[tuple[int, ...]]:
        columns = (given.image_M, given.prior_M, given.target_M)
        return set(zip(*(column.tolist() for column in columns), strict=True))

    return len(rows(a) & rows(b)) / max(1, len(rows(a) | rows(b)))


def loss_step(predictions: Predictions, targets: Targets, assign: Callable[[Predictions, Targets], Assignment]) -> None:
    """Assign, compute the losses and their gradients on all that is predicted."""
    given = predictions.detach()
    for leaf in (given.boxes_BP4, given.class_logits_BPC, given.objectness_BP):
        if leaf is not None:
            leaf.requires_grad_()
    losses = Yolov7Criterion().losses(given, assign(given, targets), targets)
    torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16, help="images")
    parser.add_argument("--size", type=int, default=640, help="side of the images in pixels")
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    pairs: list[tuple[str, Assigner, Callable[[Predictions, Targets], Assignment]]] = [
        ("yolov7", Yolov7Assigner(), plain_yolov7),
        ("atss", AtssAssigner(), plain_atss),
    ]
    print(f"batch {arguments.batch} at {arguments.size}, {arguments.classes} classes, {arguments.threads} thread(s)")
    print(
        f"{'objects an image':>18} {'assigner':>9} {'reference ms':>13} {'ours ms':>9} {'ratio':>6} {'agreement':>10}"
    )
    # The last row: one crowded image among others, as mosaics have it.
    crowded = [5 + 95 * (i == 0) + 15 * (i % 3) for i in range(arguments.batch)]
    for name, objects in [(str(n), [n] * arguments.batch) for n in (5, 20, 50, 100)] + [("5 to 100", crowded)]:
        predictions, targets = random_case(arguments.batch, arguments.size, arguments.classes, objects)
        for title, assigner, reference in pairs:
            theirs = milliseconds(partial(reference, predictions, targets))
            ours = milliseconds(partial(assigner.assign, predictions, targets))
            same = agreement(assigner.assign(predictions, targets), reference(predictions, targets))
            print(f"{name:>18} {title:>9} {theirs:13.1f} {ours:9.1f} {ours / theirs:6.2f} {same:10.4f}")

    predictions, targets = random_case(arguments.batch, arguments.size, arguments.classes, [20] * arguments.batch)
    theirs = milliseconds(lambda: loss_step(predictions, targets, plain_yolov7))
    ours = milliseconds(lambda: loss_step(predictions, targets, Yolov7Assigner().assign))
    matches = Yolov7Assigner().assign(predictions, targets)
    loss = milliseconds(lambda: loss_step(predictions, targets, lambda *_: matches))
    print(f"loss forward and backward, 20 objects: reference assignment {theirs:.1f} ms, ours {ours:.1f} ms", end="")
    print(f" ({ours / theirs:.2f}); without assignment {loss:.1f} ms")


if __name__ == "__main__":
    main()
