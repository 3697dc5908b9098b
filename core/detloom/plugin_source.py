"""The source of plugins: the API version that it states, read without running it, and files as modules.

A plugin states the version that it was written for as a plain number at the top of its module:

    PLUGIN_API = 1

One that states nothing was written for the first version.
"""

import ast
import hashlib
import importlib.metadata
import importlib.util
import sys
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from detloom.errors import PluginError
from detloom.hookspecs import PLUGIN_API

__all__ = [
    "FILE",
    "STATEMENT",
    "PluginFile",
    "api_complaint",
    "digests_of",
    "line_of",
    "load_plugin_file",
    "plugin_options",
    "read_plugin_file",
    "short_name",
    "source_of",
    "stated_api",
]

STATEMENT = "PLUGIN_API"
"""The name under which a plugin states the version."""

FILE = "file "
"""What the record of a file begins with, and that of a distribution does not."""

FIRST_API = 1
SHOWN_DIGITS = 16


@dataclass(frozen=True, slots=True)
class PluginFile:
    """A plugin that is one file, not installed.

    Attributes:
        path: Where it lies, absolute.
        digest: The SHA-256 of its content, in hexadecimal.
        source: Its content.
    """

    path: Path
    digest: str
    source: bytes

    def __str__(self) -> str:
        """Return what an artifact records: the name and the digest."""
        return f"{FILE}{self.name}, sha256 {self.digest}"

    @property
    def name(self) -> str:
        """Return what an artifact calls it."""
        return short_name(self.path)


def short_name(path: Path | str) -> str:
    """Return the name of a plugin's file without folders; that of a package with its own folder."""
    path = Path(path)
    return f"{path.parent.name}/{path.name}" if path.name == "__init__.py" and path.parent.name else path.name


def plugin_options(files: Iterable[Path | str]) -> tuple[str, ...]:
    """Return the options that give a command these files, each by its way from here where it lies below."""
    here = Path.cwd()
    paths = [path.relative_to(here) if path.is_relative_to(here) else path for path in map(Path, files)]
    return tuple(word for path in paths for word in ("--plugin", str(path)))


def read_plugin_file(path: Path) -> PluginFile:
    """Return a plugin's file, not run.

    Raises:
        PluginError: It is not there, cannot be read, or is no Python file.
    """
    if path.suffix != ".py":
        raise PluginError(f"{path}: a plugin that is a file ends in .py; one that is installed need not be named")
    try:
        source = path.read_bytes()
    except OSError as error:
        raise PluginError(f"{path}: the plugin's file cannot be read: {error.strerror}; correct its path") from error
    return PluginFile(path.resolve(), hashlib.sha256(source).hexdigest(), source)


def digests_of(paths: Iterable[Path | str]) -> dict[str, list[str]]:
    """Return what plugins' files hold now, by name; several may have one name.

    Raises:
        PluginError: One is not there, cannot be read, or is no Python file.
    """
    found: dict[str, list[str]] = {}
    for file in map(read_plugin_file, map(Path, sorted(set(map(str, paths))))):
        found.setdefault(file.name, []).append(f"sha256 {file.digest}")
    return {name: sorted(digests) for name, digests in found.items()}


def load_plugin_file(file: PluginFile) -> ModuleType:
    """Run a plugin's file, and return its module.

    Raises:
        PluginError: It was written for another API version, or raises; says on which line.
    """
    complaint = api_complaint(stated_api(file.source))
    if complaint:
        raise PluginError(f"{file.path}: {complaint}")
    # No name of an import, so that a file called torch.py takes the place of nothing.
    name = f"{file.name}@{file.digest[:SHOWN_DIGITS]}"
    spec = importlib.util.spec_from_loader(name, loader=None, origin=str(file.path))
    assert spec is not None  # noqa: S101 - narrows the type
    module = importlib.util.module_from_spec(spec)
    module.__file__ = str(file.path)
    # Data classes look their module up.
    sys.modules[name] = module
    try:
        # What was read is what is run: the digest is that of this code.
        exec(compile(file.source, str(file.path), "exec"), vars(module))  # noqa: S102 - the user named this file
    except Exception as error:
        del sys.modules[name]
        raise PluginError(f"{line_of(error, file.path)}: {type(error).__name__}: {error}") from error
    return module


def stated_api(source: bytes) -> int | None:
    """Return the version that a source states at its top level, or nothing; runs none of it."""
    try:
        statements = ast.parse(source).body
    except (SyntaxError, ValueError):
        return None  # importing it will say what is wrong
    for statement in statements:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=value)) if name == STATEMENT:
                return value if isinstance(value, int) else None
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.Constant(value=value)) if name == STATEMENT:
                return value if isinstance(value, int) else None
    return None


def source_of(module: str) -> Path | None:
    """Return the source of a module without importing it or its parents, or nothing where there is none."""
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.has_location and spec.origin and spec.origin.endswith(".py") else None
    for folder in spec.submodule_search_locations or ():
        at = Path(folder).joinpath(*rest)
        for path in (at.with_suffix(".py"), at / "__init__.py"):
            if path.is_file():
                return path
    return None


def api_complaint(stated: object, distribution: str = "") -> str | None:
    """Return why a plugin of a version cannot be used and what to do, or None where it can.

    Args:
        stated: What it states; None for nothing.
        distribution: Name and version of the distribution it came with; empty for a file.
    """
    written_for = FIRST_API if stated is None else stated
    if written_for == PLUGIN_API:
        return None
    newer = isinstance(written_for, int) and written_for > PLUGIN_API
    plugin = distribution.partition(" ")[0]
    if newer:
        advice = "`pip install --upgrade detloom`"
        advice += f", or install a release of {plugin} for version {PLUGIN_API}" if plugin else ""
    else:
        advice = f"`pip install --upgrade {plugin}`" if plugin else "change it as detloom's changelog says"
        advice += f", or install a detloom with version {written_for!r}"
    own = importlib.metadata.version("detloom")
    return (
        f"it was written for version {written_for!r} of the plugin API, and detloom {own} has version {PLUGIN_API}; "
        f"{advice}"
    )


def line_of(error: Exception, path: Path) -> str:
    """Return the file and the line in it at which an error arose."""
    if isinstance(error, SyntaxError) and error.lineno:
        return f"{path}, line {error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f"{path}, line {lines[-1]}" if lines else str(path)
