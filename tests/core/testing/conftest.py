"""What the mutation tables of the conformance kit need."""

from collections.abc import Callable
from typing import Any

import pytest

from detloom.testing import checks_of


@pytest.fixture
def caught() -> Callable[..., dict[str, str]]:
    """Return a function of a component to the checks that it breaks, with what they say."""

    def run(cls: type[Any], example: Callable[[], Any] | None = None) -> dict[str, str]:
        broken = {}
        for check in checks_of(cls, example=example):
            try:
                check()
            except AssertionError as error:
                broken[check.name] = str(error)
        return broken

    return run
