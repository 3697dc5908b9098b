"""Which packages of an extra are absent."""

import importlib.util
from collections.abc import Sequence

__all__ = ["missing_packages"]


def missing_packages(component: str, packages: Sequence[str], extra: str) -> str | None:
    """Return one line that names the packages that a component lacks, and what installs them; None if it has all."""
    absent = [package for package in packages if importlib.util.find_spec(package) is None]
    if not absent:
        return None
    return f"{component} needs {', '.join(absent)}, which this Python lacks: pip install 'detloom[{extra}]'"
