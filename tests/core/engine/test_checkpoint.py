"""States survive a round trip, and broken ones are refused."""

import errno
import os
from pathlib import Path

import pytest
import torch

from detloom.durable import write_whole
from detloom.engine.checkpoint import load_state, save_state
from detloom.errors import ArtifactError


def test_nested_state_comes_back(tmp_path: Path) -> None:
    state = {
        "optimizer": {0: {"momentum": torch.arange(3.0), "step": 4}, 7: {"momentum": None}},
        "position": {"epoch": 2},
        "list": [1, 2.5, "x", True, torch.tensor(3, dtype=torch.int64)],
        "empty": {},
    }

    save_state(tmp_path / "state", state)
    found = load_state(tmp_path / "state")

    assert found["optimizer"][0]["momentum"].tolist() == [0.0, 1.0, 2.0]
    assert found["optimizer"][0]["step"] == 4
    assert found["optimizer"][7] == {"momentum": None}
    assert found["position"] == {"epoch": 2}
    assert found["list"][:4] == [1, 2.5, "x", True]
    assert found["list"][4].item() == 3
    assert found["empty"] == {}


def test_numbers_come_back_to_the_last_bit(tmp_path: Path) -> None:
    save_state(tmp_path / "state", {"third": 1 / 3, "nothing": float("inf")})

    assert load_state(tmp_path / "state") == {"third": 1 / 3, "nothing": float("inf")}


def test_tensors_that_share_memory_come_back(tmp_path: Path) -> None:
    shared = torch.arange(6.0).reshape(2, 3)

    save_state(tmp_path / "state", {"a": shared, "b": shared, "c": shared.t()})

    found = load_state(tmp_path / "state")
    assert found["a"].equal(shared)
    assert found["b"].equal(shared)
    assert found["c"].equal(shared.t())


def test_other_things_are_no_state(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"state\.made: .* not object"):
        save_state(tmp_path / "state", {"made": object()})


@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff" * 64, (8).to_bytes(8, "little") + b"[[[[[[[["])
def test_broken_state_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "state").write_bytes(content)

    with pytest.raises(ArtifactError, match="no whole safetensors file"):
        load_state(tmp_path / "state")


def test_cut_state_is_refused(tmp_path: Path) -> None:
    save_state(tmp_path / "state", {"weights": torch.ones(100)})
    content = (tmp_path / "state").read_bytes()
    (tmp_path / "state").write_bytes(content[:-8])

    with pytest.raises(ArtifactError, match="no whole safetensors file"):
        load_state(tmp_path / "state")


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    save_state(tmp_path / "state", {"weights": torch.ones(2)})
    monkeypatch.setattr("detloom.durable.save_file", full)

    with pytest.raises(
        ArtifactError, match=r"no space left on device\n  What was there before is intact. Free some space"
    ):
        save_state(tmp_path / "state", {"weights": torch.zeros(2)})

    assert load_state(tmp_path / "state")["weights"].tolist() == [1.0, 1.0]
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EACCES, "permission denied\n  What was there before is intact. Get the right to write in {folder}, or"),
        (errno.EROFS, "read-only file system\n  What was there before is intact. Write somewhere else."),
        (errno.ENOENT, "no such file or directory\n  What was there before is intact. Make the folder {folder}, or"),
    ],
)
def test_failed_write_names_the_file_that_was_wanted_and_what_helps(tmp_path: Path, number: int, said: str) -> None:
    def refuse(beside: Path) -> None:
        raise OSError(number, os.strerror(number), str(beside))

    with pytest.raises(ArtifactError) as caught:
        write_whole(tmp_path / "mine.txt", refuse)

    assert str(caught.value).startswith(f"{tmp_path}/mine.txt: cannot be written: {said.format(folder=tmp_path)}")
    assert "unfinished" not in str(caught.value)
    assert "Errno" not in str(caught.value)
