"""Zero-cost scores beside what their formulas say, computed without gradients and pair by pair."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from narrow_recipe import NARROW, NARROW_NECK
from torch import Tensor, nn

import detloom
from detloom.detector import Detector
from detloom.errors import RecipeError
from detloom.export.network import RawMaps
from detloom.search.zero_cost import naswot, synflow

DROPPING: Mapping[str, Any] = {
    "backbone.use": "timm",
    "backbone.model": "convnext_atto",
    "backbone.options": {"drop_path_rate": 0.5},
    **NARROW_NECK,
}


def drawn(overrides: Mapping[str, Any] = NARROW) -> Detector:
    torch.manual_seed(0)
    return detloom.assemble("yolov7-tiny", overrides)


def test_synflow_is_the_derivative_of_the_flow_by_the_scale_of_all_weights() -> None:
    # The sum over all weights of the weight times its gradient is that derivative at 1 (Euler).
    flow = RawMaps(drawn()).double().eval()
    for module in flow.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.forward = lambda x: x  # type: ignore[method-assign, assignment]
    parameters = [
        each for m in flow.modules() if not isinstance(m, nn.BatchNorm2d) for each in m.parameters(recurse=False)
    ]
    weights = [each.detach().abs() for each in parameters]

    def total(scale: float) -> float:
        with torch.no_grad():
            for parameter, weight in zip(parameters, weights, strict=True):
                parameter.copy_(scale * weight)
            return sum(float(each.sum()) for each in flow(torch.ones(1, 3, 64, 64, dtype=torch.float64)))

    step = 1e-5
    derivative = (total(1 + step) - total(1 - step)) / (2 * step)

    # A central difference errs by the square of the step times the cube of some tens of layers.
    assert synflow(drawn()) == pytest.approx(np.log(derivative), abs=1e-5)


def test_naswot_is_the_log_determinant_of_how_many_units_agree() -> None:
    network = RawMaps(drawn()).train()
    patterns: list[np.ndarray[Any, Any]] = []

    def note(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        patterns.append(inputs[0].flatten(1).numpy() > 0)

    for each in network.modules():
        if isinstance(each, nn.LeakyReLU):
            each.register_forward_pre_hook(note)
    with torch.no_grad():
        network(torch.randn(16, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    on = np.concatenate(patterns, axis=1)
    alike = [[int((a == b).sum()) for b in on] for a in on]

    assert naswot(drawn()) == pytest.approx(np.linalg.slogdet(np.array(alike, dtype=float))[1], rel=1e-9)


def test_naswot_of_dropped_paths_is_one_number_and_draws_from_nobody() -> None:
    scores = []
    for seed in (1, 2):
        detector = drawn(DROPPING)
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        scores.append(naswot(detector))
        assert torch.equal(torch.get_rng_state(), before)

    assert scores[0] == scores[1]


def test_network_without_activations_has_no_naswot() -> None:
    detector = drawn()
    for parent in detector.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.LeakyReLU):
                setattr(parent, name, nn.Identity())

    with pytest.raises(RecipeError, match=r"naswot is -inf for this network.*use 'synflow'"):
        naswot(detector)
