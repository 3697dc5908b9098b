"""Every backbone x head x assigner (x criterion) for a few steps on real pictures: do the losses fall?

    python benchmarks/combinations.py DATA [--steps 20]

192 x 192 pixels, batches of 4, AdamW, float32; means of the first and the last fifth of the steps.
"""

import argparse
from itertools import product

import torch

from detloom.assembly import assemble
from detloom.data.loader import Loader
from detloom.data.splits import open_splits
from detloom.recipe import load_recipe

SIDE, BATCH = 192, 4
BACKBONES = {"elan": {}, "timm resnet18": {"backbone.use": "timm", "backbone.model": "resnet18"}}
HEADS = {"anchor": {}, "decoupled": {"head.use": "decoupled"}}
ASSIGNERS = ("yolov7", "atss")
CRITERIA = ("yolov7", "yolox")


def main() -> None:
    """Train each combination and print a row for it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    recipe = load_recipe("yolov7-tiny-small-data", {"data.image_size": SIDE, "data.workers": 0})
    train, _ = open_splits(arguments.data, recipe.data, recipe.tables.get("dataset"))
    loader = Loader(train, image_size=SIDE, batch_size=BATCH, augment=recipe.augment)
    print(f"{'backbone':14} {'head':10} {'assigner':9} {'criterion':10} {'first':>8} {'last':>8}")
    for backbone, head, assigner, criterion in product(BACKBONES, HEADS, ASSIGNERS, CRITERIA):
        overrides = {**BACKBONES[backbone], **HEADS[head], "assigner.use": assigner, "criterion.use": criterion}
        torch.manual_seed(0)
        detector = assemble(recipe, overrides, names=train.names).train()
        optimizer = torch.optim.AdamW(detector.parameters(), lr=1e-3)
        totals: list[float] = []
        for batch, _ in zip(loader.epoch(0), range(arguments.steps), strict=False):
            losses = detector(batch.images_BCHW.float() / 255, batch.targets)
            total = torch.stack(list(losses.values())).sum()
            optimizer.zero_grad()
            torch.autograd.backward(total)
            torch.nn.utils.clip_grad_norm_(detector.parameters(), 10.0)
            optimizer.step()
            totals.append(float(total.detach()))
        part = max(len(totals) // 5, 1)
        first, last = sum(totals[:part]) / part, sum(totals[-part:]) / part
        print(f"{backbone:14} {head:10} {assigner:9} {criterion:10} {first:8.2f} {last:8.2f}", flush=True)


if __name__ == "__main__":
    main()
