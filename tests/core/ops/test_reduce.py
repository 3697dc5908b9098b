"""Means over processes."""

import multiprocessing
from pathlib import Path

import torch
import torch.distributed as dist

from detloom.ops.reduce import mean_over_processes


def _share(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    given = torch.tensor([rank * 4, 10])
    torch.save((mean_over_processes(given), given), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_a_single_process_has_its_own_number() -> None:
    result = mean_over_processes(torch.tensor([3, 4]))

    assert result.tolist() == [3.0, 4.0]
    assert result.dtype == torch.float32


def test_two_processes_agree_on_the_mean_and_keep_their_own(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_share, args=(rank, str(tmp_path))) for rank in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()

    for rank in range(2):
        mean, given = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert mean.tolist() == [2.0, 10.0]
        assert given.tolist() == [rank * 4, 10]
