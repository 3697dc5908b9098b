"""What several test modules need."""

from collections.abc import Callable
from pathlib import Path

import pytest

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
