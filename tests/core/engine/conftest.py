"""The stand-in detectors, for tests of the engine."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def stand_in() -> ModuleType:
    """Return the module ``stand_in.py``."""
    return _loaded("stand_in")


@pytest.fixture(scope="session")
def colours() -> ModuleType:
    """Return the module ``colour_detector.py``."""
    return _loaded("colour_detector")


def _loaded(name: str) -> ModuleType:
    # Tests are no package: what they share is loaded by its path.
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
