"""What several test modules need."""

import os
from collections.abc import Callable
from pathlib import Path

# As the command does, before torch is imported: where threads spin for long, a busy machine makes the tests crawl.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")
# Processes that test side by side leave one another a core each.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import nn

# No test measures time, nor does one fail because the machine is busy.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

SHARED = Path(__file__).resolve().parents[1].parent / "shared"


@pytest.fixture(scope="session")
def shared() -> Callable[[str], Path]:
    """Return a file beside the repository, ``../shared/<path>``, or skip the test and say what is absent."""

    def find(path: str) -> Path:
        found = SHARED / path
        if not found.exists():
            pytest.skip(f"../shared/{path} is not here: it lies beside the repository, not in it")
        return found

    return find


@pytest.fixture
def excite_() -> Callable[[nn.Module], nn.Module]:
    """Return what gives norms statistics and weights that make a mistake visible, always the same."""

    def excite(model: nn.Module) -> nn.Module:
        generator = torch.Generator().manual_seed(0)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.running_var):
                    if tensor is not None:
                        nn.init.uniform_(tensor, 0.5, 1.5, generator=generator)
                for tensor in (module.bias, module.running_mean):
                    if tensor is not None:
                        nn.init.uniform_(tensor, -0.5, 0.5, generator=generator)
        return model

    return excite
