"""Losses and gradient of one step of yolov7-tiny over all processes, written as JSON; started by a test."""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from detloom.assembly import assemble
from detloom.engine.processes import share_statistics
from detloom.structures import Targets

SIDE, BATCH = 64, 8


def main() -> None:
    """Take the gradient of this process's share of a batch."""
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        dist.init_process_group("gloo")
    torch.manual_seed(0)
    detector = assemble("yolov7-tiny", num_classes=3).train().double()
    if world > 1:
        share_statistics(detector, torch.device("cpu"))
    generator = torch.Generator().manual_seed(1)
    images_BCHW = torch.rand(BATCH, 3, SIDE, SIDE, generator=generator, dtype=torch.float64)
    boxes, labels = [], []
    # Pictures have different numbers of objects, so that the processes' counts differ too.
    for number in range(BATCH):
        corners_N2 = torch.rand(number, 2, generator=generator) * 30
        boxes.append(torch.cat((corners_N2, corners_N2 + 10 + torch.rand(number, 2, generator=generator) * 20), 1))
        labels.append(torch.randint(0, 3, (number,), generator=generator))
    share = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    losses = detector(images_BCHW[share], Targets.from_lists(boxes[share], labels[share], (SIDE, SIDE)))
    values_L = torch.stack(list(losses.values()))
    torch.autograd.backward(values_L.sum())
    gradients = [parameter.grad for parameter in detector.parameters() if parameter.grad is not None]
    found = [values_L.detach().double(), torch.stack([gradient.norm() for gradient in gradients])]
    if world > 1:
        for gradient in gradients:
            dist.all_reduce(gradient)
            gradient.div_(world)
        found[1] = torch.stack([gradient.norm() for gradient in gradients])
        dist.all_reduce(found[0])
        found[0] /= world
    if rank == 0:
        content = {"losses": dict(zip(losses, found[0].tolist(), strict=True)), "gradient": found[1].tolist()}
        Path(sys.argv[1]).write_text(json.dumps(content))
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
