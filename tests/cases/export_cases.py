"""A small detector, untrained, and a few drawn pictures: enough for an export from beginning to end."""

from pathlib import Path

import torch
from torch import nn

from detloom.artifacts import save_artifact
from detloom.assembly import assemble
from detloom.recipe import Recipe, load_recipe
from detloom.scenes import CLASSES, write_scenes

__all__ = ["PLUGIN", "SMALL", "small_artifact", "small_data", "small_recipe"]

PLUGIN = Path(__file__).with_name("trial_exporter.py")
SMALL = {
    "backbone.stem": [[3, 2, 8], [3, 2, 8]],
    "backbone.hidden": [4, 8, 8, 8],
    "backbone.widths": [8, 8, 16, 16],
    "neck.hidden": [4, 4, 8],
    "neck.widths": [8, 8, 16],
    "neck.outputs": [8, 16, 16],
    "data.image_size": 64,
    "data.workers": 0,
    "train.batch": 2,
    "train.nominal_batch": 2,
}


def small_recipe() -> Recipe:
    """Return YOLOv7-tiny's design with a few channels."""
    return load_recipe("demo", SMALL)


def small_artifact(path: Path) -> Path:
    """Write a detector whose norms are not those of a new one, and return the path."""
    recipe = small_recipe()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        detector = assemble(recipe, names=CLASSES)
        for module in detector.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.5, 0.5)
    save_artifact(path, detector, recipe=recipe, names=CLASSES)
    return path


def small_data(folder: Path) -> Path:
    """Draw a data set of a few pictures, and return its folder."""
    return write_scenes(folder, train=4, val=2, unseen=0)
