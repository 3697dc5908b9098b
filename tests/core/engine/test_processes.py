"""Precision, repeatability, and several processes against one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from detloom.engine.processes import SharedBatchNorm, numerics, open_accelerator, precision_of, share_statistics
from detloom.engine.settings import TrainSettings
from detloom.errors import PluginError, RecipeError

SCRIPT = Path(__file__).with_name("stand_in.py")
CPU = torch.device("cpu")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ACCELERATE = [
    # Its --multi_gpu means several processes; where there is no GPU they train on the CPU.
    *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
    *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
]


def train(launcher: list[str], root: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    root.mkdir()
    command = [*launcher, str(SCRIPT), str(root), json.dumps(settings), "together"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=240
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(path.read_text()) for path in sorted(root.glob("found-*.json"))]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate"])
def test_two_processes_have_the_losses_of_one_with_the_same_batch(tmp_path: Path, launcher: list[str]) -> None:
    settings = {"precision": "float32", "epochs": 3, "seed": 3, "evaluate_every": 0}

    (alone,) = train([sys.executable], tmp_path / "one", settings)
    both = train(launcher, tmp_path / "two", settings)

    assert len(both) == 2
    assert both[0]["weights"] == both[1]["weights"]
    assert both[0]["step"] == alone["step"]
    for ours, theirs in zip(both[0]["losses"], alone["losses"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    assert both[0]["weights"] == pytest.approx(alone["weights"], rel=1e-4, abs=1e-6)


@pytest.mark.slow
def test_two_processes_have_the_gradient_of_one_with_real_losses(tmp_path: Path) -> None:
    script = str(SCRIPT.with_name("one_step.py"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = {}
    for name, launcher in {"one": [sys.executable], "two": TORCHRUN}.items():
        out = tmp_path / name
        done = subprocess.run(
            [*launcher, script, str(out)], capture_output=True, text=True, check=False, env=environment, timeout=240
        )
        assert done.returncode == 0, done.stderr
        found[name] = json.loads(out.read_text())

    # The network is in float64, because an untrained one in float32 makes 1e-4 of its rounding; the losses are float32.
    assert found["two"]["losses"] == pytest.approx(found["one"]["losses"], rel=1e-6)
    assert found["two"]["gradient"] == pytest.approx(found["one"]["gradient"], rel=1e-6)


def test_automatic_precision_is_one_the_processor_has() -> None:
    found = precision_of(TrainSettings(), "cpu")

    assert found in ("bfloat16", "float32")


def test_apples_gpu_computes_in_float32_unless_told_otherwise() -> None:
    assert precision_of(TrainSettings(), "mps") == "float32"
    assert precision_of(TrainSettings(precision="float16"), "mps") == "float16"


def test_float16_on_a_processor_is_refused() -> None:
    with pytest.raises(RecipeError, match="float16' needs a GPU"):
        precision_of(TrainSettings(precision="float16"), "cpu")


@pytest.mark.parametrize(("given", "expected"), [(None, ":4096:8"), (":16:8", ":16:8")])
def test_repeatable_products_are_asked_for_before_a_gpu_is_used(
    monkeypatch: pytest.MonkeyPatch, given: str | None, expected: str
) -> None:
    name = "CUBLAS_WORKSPACE_CONFIG"
    # Set first, so that what the call sets is undone.
    monkeypatch.setenv(name, given or "")
    if given is None:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")

    open_accelerator(TrainSettings(deterministic=True))

    assert os.environ[name] == expected


def test_repeatable_kernels_are_asked_for_and_given_back() -> None:
    with numerics(TrainSettings(), CPU):
        inside = torch.are_deterministic_algorithms_enabled()

    assert inside
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]  # a property of the module's class


def test_shared_norm_keeps_parameters_and_names() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    weight, names = model[1].weight, list(model.state_dict())

    share_statistics(model, CPU)

    assert isinstance(model[1], SharedBatchNorm)
    assert model[1].weight is weight
    assert list(model.state_dict()) == names


def test_shared_norm_alone_is_batch_norm(tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4, eps=1e-3, momentum=0.03)
    shared = SharedBatchNorm.from_norm(nn.BatchNorm2d(4, eps=1e-3, momentum=0.03))
    images_BCHW = torch.randn(3, 4, 5, 6)
    one, other = images_BCHW.clone().requires_grad_(), images_BCHW.clone().requires_grad_()

    try:
        norm(one).pow(3).sum().backward()
        shared(other).pow(3).sum().backward()
    finally:
        torch.distributed.destroy_process_group()

    torch.testing.assert_close(other.grad, one.grad, rtol=1e-4, atol=1e-5)
    for name, entry in norm.state_dict().items():
        torch.testing.assert_close(shared.state_dict()[name], entry, rtol=1e-5, atol=1e-6)


def test_norm_that_cannot_be_shared_is_named() -> None:
    class OtherNorm(nn.BatchNorm2d):
        pass

    with pytest.raises(PluginError, match="0: OtherNorm has no statistics shared"):
        share_statistics(nn.Sequential(OtherNorm(3)), CPU)
