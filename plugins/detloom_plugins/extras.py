"""Which packages of an extra are absent."""

import importlib.util
from collections.abc import Mapping, Sequence
from types import MappingProxyType

__all__ = ["missing_packages"]

# Of packages that are imported by another name than their own with underscores.
MODULES: Mapping[str, str] = MappingProxyType({"ethos-u-vela": "ethosu"})


def missing_packages(component: str, packages: Sequence[str], extra: str) -> str | None:
    """Return one line that names the packages that a component lacks, and what installs them; None if it has all."""
    absent = [
        package
        for package in packages
        if importlib.util.find_spec(MODULES.get(package, package.replace("-", "_"))) is None
    ]
    if not absent:
        return None
    return f"{component} needs {', '.join(absent)}, which this Python lacks: pip install 'detloom[{extra}]'"
