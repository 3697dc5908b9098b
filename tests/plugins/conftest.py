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
