"""Published assignments and losses, in the terms of the library."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from detloom.ops.boxes import cxcywh_to_xyxy
from detloom.structures import Assignment, Predictions, Priors, Targets

# Level, image, anchor, row, column, target.
Row = tuple[int, ...]


@dataclass(frozen=True)
class LossCase:
    """One golden file.

    Attributes:
        arrays: Everything in the file.
        maps: Raw maps ``[B, A, H, W, 5 + C]`` of the lead, then of the auxiliary levels, with gradients.
    """

    arrays: Any
    maps: tuple[Tensor, ...]
    strides: tuple[int, ...]
    anchors_LA2: Tensor
    image_size: tuple[int, int]
    targets: Targets

    @property
    def lead(self) -> Predictions:
        """Return the lead predictions, decoded."""
        return self._decoded(self.maps[: len(self.strides)])

    @property
    def auxiliary(self) -> Predictions:
        """Return the auxiliary predictions, decoded."""
        return self._decoded(self.maps[len(self.strides) :])

    def settings(self, variant: str) -> dict[str, float]:
        """Return the criterion's settings of a variant, whose gains are those in force."""
        given = json.loads(str(self.arrays[f"{variant}hyp_json"]))
        return {
            "box": given["box"],
            "objectness": given["obj"],
            "classes": given["cls"],
            "label_smoothing": given["label_smoothing"],
            "class_positive_weight": given["cls_pw"],
            "objectness_positive_weight": given["obj_pw"],
            "focal_gamma": given["fl_gamma"],
        }

    def rows(self, assignment: Assignment) -> list[Row]:
        """Return the matches in the terms of the file, sorted; equal targets are called by the first."""
        first = [
            next(j for j, b in enumerate(self.arrays["targets"]) if (a == b).all()) for a in self.arrays["targets"]
        ]
        cells = self.cells(assignment.image_M, assignment.prior_M)
        return sorted((*cell, first[t]) for cell, t in zip(cells, assignment.target_M.tolist(), strict=True))

    def cells(self, image_M: Tensor, prior_M: Tensor) -> list[Row]:
        """Return level, image, anchor, row and column of priors."""
        priors = self.lead.priors
        found: list[Row] = []
        for image, prior in zip(image_M.tolist(), prior_M.tolist(), strict=True):
            level = int(priors.level_P[prior])
            grid = priors.grids[level]
            cell, anchor = divmod(prior - grid.start, grid.per_cell)
            found.append((level, image, anchor, *divmod(cell, grid.width)))
        return found

    def golden_cells(self, name: str) -> list[Row]:
        """Return the cells of arrays of all levels, sorted."""
        return sorted((i, *row.tolist()) for i in range(len(self.strides)) for row in self.arrays[f"{name}{i}"])

    def golden_rows(self, name: str) -> list[Row]:
        """Return the matches of all levels, sorted."""
        return sorted(
            (i, *row.tolist(), int(target))
            for i in range(len(self.strides))
            for row, target in zip(self.arrays[f"{name}_match{i}"], self.arrays[f"{name}_target{i}"], strict=True)
        )

    def gradient_norms(self, total: Tensor) -> np.ndarray[Any, Any]:
        """Return the norms ``[outputs, 5]`` as the files hold them."""
        used = self.maps if any(f"aux_grad{i}" in self.arrays for i in range(8)) else self.maps[: len(self.strides)]
        gradients = torch.autograd.grad(total, used, allow_unused=True)
        parts = (slice(None), slice(0, 2), slice(2, 4), slice(4, 5), slice(5, None))
        return np.array([[0.0 if g is None else g[..., part].norm().item() for part in parts] for g in gradients])

    def _decoded(self, maps: tuple[Tensor, ...]) -> Predictions:
        priors = Priors.on_grids([(m.shape[2], m.shape[3]) for m in maps], self.strides, self.anchors_LA2)
        raw_BPO = torch.cat([m.permute(0, 2, 3, 1, 4).flatten(1, 3) for m in maps], dim=1)
        box_BP4 = raw_BPO[..., :4].sigmoid() * 2
        center_BP2 = (box_BP4[..., :2] - 1) * priors.strides_P[:, None] + priors.centers_P2
        size_BP2 = box_BP4[..., 2:].square() * priors.sizes_P2
        boxes_BP4 = cxcywh_to_xyxy(torch.cat((center_BP2, size_BP2), dim=-1))
        return Predictions(boxes_BP4, raw_BPO[..., 5:], raw_BPO[..., 4], priors)


@pytest.fixture(scope="session")
def loss_case(shared: Callable[[str], Path]) -> Callable[[str], LossCase]:
    """Return a function of a golden file's name to what it holds."""

    def load(name: str) -> LossCase:
        arrays = dict(np.load(shared(f"golden/loss/{name}.npz")))
        # The files for no and for wide images leave out what they share with the others.
        nominal = arrays if "anchors_px" in arrays else np.load(shared("golden/loss/p5-nc3-seed0.npz"))
        maps: list[Tensor] = []
        while f"pred{len(maps)}" in arrays or f"pred{len(maps)}_box_q" in arrays:
            key = f"pred{len(maps)}"
            if key in arrays:
                raw = torch.from_numpy(arrays[key])
            else:
                box = torch.from_numpy(arrays[f"{key}_box_q"]).float() * 2**-11
                raw = torch.cat((box, torch.from_numpy(arrays[f"{key}_cls_q"]).float() * 2**-4), dim=-1)
            maps.append(raw.requires_grad_())
        if "height_width" in arrays:
            height, width = (int(side) for side in arrays["height_width"])
        else:
            height = width = int(arrays["image_size"])
        target_T6 = torch.from_numpy(arrays["targets"]).reshape(-1, 6)
        boxes_T4 = cxcywh_to_xyxy(target_T6[:, 2:] * torch.tensor([width, height, width, height]))
        per_image = [target_T6[:, 0] == image for image in range(maps[0].shape[0])]
        return LossCase(
            arrays=arrays,
            maps=tuple(maps),
            strides=tuple(int(stride) for stride in nominal["strides"]),
            anchors_LA2=torch.from_numpy(nominal["anchors_px"]),
            image_size=(height, width),
            targets=Targets.from_lists(
                [boxes_T4[here] for here in per_image], [target_T6[here, 1] for here in per_image], (height, width)
            ),
        )

    return load


@pytest.fixture(scope="session")
def described_case(shared: Callable[[str], Path]) -> Callable[[str], tuple[LossCase, dict[str, Any]]]:
    """Return a function of a case's name in the description's golden file to the case and its numbers."""

    def load(name: str) -> tuple[LossCase, dict[str, Any]]:
        case = json.loads(shared("spec/golden/losses.json").read_text())[name]
        setup = case["setup"]
        size, strides, batch = setup["image_size"], setup["strides"], setup["batch"]
        random = np.random.RandomState(setup["seed"])
        outputs = 2 if "aux_ota_q20" in case else 1
        maps = [
            random.standard_normal((batch, 3, size // s, size // s, 5 + setup["classes"])).astype(np.float32)
            for s in list(strides) * outputs
        ]
        target_T6 = torch.tensor(setup["targets_px_of_128"], dtype=torch.float32)
        if setup["all_classes_zero"]:
            target_T6[:, 1] = 0
        boxes_T4 = cxcywh_to_xyxy(target_T6[:, 2:] / 128 * size)
        per_image = [target_T6[:, 0] == image for image in range(batch)]
        return LossCase(
            arrays={"targets": target_T6.numpy()},
            maps=tuple(torch.from_numpy(each).requires_grad_() for each in maps),
            strides=tuple(strides),
            anchors_LA2=torch.tensor(setup["anchors_px"], dtype=torch.float32),
            image_size=(size, size),
            targets=Targets.from_lists(
                [boxes_T4[here] for here in per_image], [target_T6[here, 1] for here in per_image], (size, size)
            ),
        ), case

    return load


# Label and corners of each object of each image, at the limits of what an assigner may be given.
EDGE_BATCHES: dict[str, list[list[tuple[float, ...]]]] = {
    "no objects in an image": [[], [(1.0, 10.0, 10.0, 40.0, 30.0)], []],
    "no objects in the batch": [[], []],
    "one image without objects": [[]],
    "hundreds in an image": [
        [(i % 3, 1.7 * (i % 50), 1.1 * (i // 6), 1.7 * (i % 50) + 6 + i % 7, 1.1 * (i // 6) + 9) for i in range(300)],
        [(1, 10, 10, 40, 30)],
    ],
    "duplicates": [[*[(0, 20, 20, 40, 40)] * 3, (1, 20, 20, 40, 40)]],
    "at the border": [[(0, 0, 0, 20, 20), (1, 80, 48, 96, 64), (2, 0, 40, 9, 64), (0, 30, 0, 60, 5)]],
    "larger than the image": [[(0, -20, -20, 116, 84), (1, 0, 0, 96, 64)]],
    "one pixel wide": [[(0, 30, 10, 31, 50), (1, 5, 5, 6, 6), (2, 10, 40, 80, 41)]],
    "all of one class": [[(2, 4.0 * i, 10, 4.0 * i + 20, 40) for i in range(15)]],
}


@pytest.fixture(params=list(EDGE_BATCHES.values()), ids=list(EDGE_BATCHES))
def edge_batch(request: pytest.FixtureRequest) -> list[list[tuple[float, ...]]]:
    """Return images at the limits, each a list of label and corners of objects, for ``scene``."""
    batch: list[list[tuple[float, ...]]] = request.param
    return batch


class Scene:
    """Random predictions on two levels for pictures 96 wide and 64 high, and the objects in them."""

    size = (64, 96)
    anchors_LA2 = torch.tensor([[[8.0, 8.0], [16.0, 8.0]], [[24.0, 40.0], [64.0, 64.0]]])
    points_LA2 = torch.tensor([[[16.0, 16.0]], [[32.0, 32.0]]])

    def predictions(
        self, num_images: int, *, seed: int = 0, points: bool = False, objectness: bool = True
    ) -> Predictions:
        """Return predictions of 3 classes near their priors."""
        generator = torch.Generator().manual_seed(seed)
        priors = Priors.on_grids([(8, 12), (4, 6)], (8, 16), self.points_LA2 if points else self.anchors_LA2)
        shape = (num_images, priors.num_priors)
        size_BP2 = priors.sizes_P2 * (torch.rand((*shape, 2), generator=generator) + 0.5)
        shift_BP2 = torch.rand((*shape, 2), generator=generator) - 0.5
        center_BP2 = priors.centers_P2 + priors.strides_P[:, None] * shift_BP2
        return Predictions(
            cxcywh_to_xyxy(torch.cat((center_BP2, size_BP2), dim=-1)),
            torch.randn((*shape, 3), generator=generator),
            torch.randn(shape, generator=generator) if objectness else None,
            priors,
        )

    def targets(self, batch: list[list[tuple[float, ...]]]) -> Targets:
        """Return objects given as label and corners."""
        rows = [torch.tensor(image).reshape(-1, 5).float() for image in batch]
        return Targets.from_lists([row[:, 1:] for row in rows], [row[:, 0] for row in rows], self.size)

    def rows(self, assignment: Assignment) -> list[tuple[int, int, int]]:
        """Return image, prior and target of the matches, sorted."""
        columns = (assignment.image_M, assignment.prior_M, assignment.target_M)
        return sorted(zip(*(column.tolist() for column in columns), strict=True))

    def random_targets(self, num_images: int, *, seed: int, most: int = 6) -> Targets:
        """Return a random number of objects in each image, none at the limits and none equal."""
        generator = torch.Generator().manual_seed(1000 + seed)
        boxes, labels = [], []
        for _ in range(num_images):
            count = int(torch.randint(0, most + 1, (1,), generator=generator))
            limit_2 = torch.tensor([96.0, 64.0])
            size_N2 = limit_2 * (torch.rand((count, 2), generator=generator) * 3 - 3.5).exp()
            corner_N2 = (limit_2 - size_N2) * torch.rand((count, 2), generator=generator)
            boxes.append(torch.cat((corner_N2, corner_N2 + size_N2), dim=1))
            labels.append(torch.randint(0, 3, (count,), generator=generator))
        return Targets.from_lists(boxes, labels, self.size)


@pytest.fixture(scope="session")
def scene() -> Scene:
    """Return what makes small batches for assigners."""
    return Scene()
