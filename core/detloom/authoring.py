"""A plugin to begin with: a distribution with one small component that works, and its tests.

The files are those of ``templates``, in which some words stand for what is chosen: ``new-plugin`` and
``new_plugin`` for the distribution and its package, ``new-component`` and ``NewComponent`` for the name
in recipes and the class, ``new-kind``, ``new-summary`` and ``new-reference`` for its row in the catalogue,
``new-file`` and ``new-command`` for what the example is and how it is used.
"""

import importlib.util
import keyword
import re
import shutil
import sys
import tempfile
from pathlib import Path

from detloom.errors import PluginError, suggest
from detloom.kinds import Kind
from detloom.workshop import Workshop, workshop

__all__ = ["TEMPLATES", "new_plugin"]

FOLDER = Path(__file__).with_name("templates")

# What the rows of the catalogue say of the components that the templates hold.
TEMPLATES: dict[str, tuple[str, str]] = {
    Kind.ASSIGNER: ("The priors around a target's centre", "Tian et al. 2020, arXiv:2006.09214, section 3.1"),
    Kind.BACKBONE: ("Strided 3x3 convolutions", "Simonyan and Zisserman 2015, arXiv:1409.1556, section 2.1"),
    Kind.CRITERION: ("Cross-entropy and GIoU", "Rezatofighi et al. 2019, arXiv:1902.09630, algorithm 1"),
    Kind.DATASET: ("Comma-separated values", "RFC 4180"),
    Kind.EMA: ("The mean of all steps, then exponential", "Polyak and Juditsky 1992"),
    Kind.EXPORTER: ("Instructions for a made-up accelerator", "torch.export's operators"),
    Kind.HEAD: ("One convolution a level, anchor-free", "Ge et al. 2021, arXiv:2107.08430, section 2.1"),
    Kind.NECK: ("A feature pyramid of one width", "Lin et al. 2017, arXiv:1612.03144, section 3"),
    Kind.REPARAM: ("Two 1x1 convolutions in a row as one", "Ding et al. 2021, arXiv:2103.13425, section 3.2"),
    Kind.SEARCH: ("Local search: neighbours of the best", "White et al. 2020, arXiv:2005.02960, section 3"),
}
"""Summary and source of the component that each kind begins with."""

VALID_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
PREFIX = "detloom-"


def new_plugin(name: str, kind: str, into: Path, *, shop: Workshop | None = None) -> Path:
    """Write a distribution, whole or not at all, and return its folder.

    Args:
        name: Of the distribution, as ``detloom-centre-assigner``; recipes call the component ``centre``.
        kind: What it offers.
        into: The folder in which a folder of the distribution's name is made.
        shop: Whose names are taken; the environment's workshop when not given.

    Raises:
        PluginError: There is no template of the kind, the name cannot be used, or the folder is there already
            or cannot be made.
    """
    if kind not in TEMPLATES:
        raise PluginError(
            f"--kind {kind}: there is no template of that kind.{suggest(kind, TEMPLATES)}\n"
            f"  kinds: {', '.join(TEMPLATES)}; docs/plugins.md has the contracts of all kinds."
        )
    component = _component_name(name, kind)
    _check_name(name, kind, component, shop or workshop())
    folder = into / name
    if folder.exists():
        raise PluginError(f"{folder}: this is there already, and is left as it is; choose another name, or --into")
    try:
        into.mkdir(parents=True, exist_ok=True)
        # Beside its place, so that moving it there is one step.
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=into) as beside:
            made = Path(beside) / name
            _write(made, name, kind, component)
            made.rename(folder)
    except OSError as error:
        raise PluginError(f"{folder}: cannot be written: {error}; nothing was. Choose another place: --into") from error
    return folder


def _write(folder: Path, name: str, kind: str, component: str) -> None:
    package = name.replace("-", "_")
    source = folder / "src" / package
    summary, reference = TEMPLATES[kind]
    words = {
        "new-plugin": name,
        "new_plugin": package,
        "new-component": component,
        "NewComponent": "".join(part.capitalize() for part in (*component.split("-"), kind)),
        "new-kind": kind,
        "new-summary": summary,
        "new-reference": reference,
        "new-file": "search" if kind == Kind.SEARCH else "recipe",
        "new-command": "search example.toml" if kind == Kind.SEARCH else "train example.toml --data DATA",
    }
    for template, path in (
        ("common/pyproject.toml", folder / "pyproject.toml"),
        ("common/README.md", folder / "README.md"),
        ("common/registry.toml", source / "registry.toml"),
        (f"{kind}/component.py", source / "__init__.py"),
        (f"{kind}/example.toml", folder / "example.toml"),
        (f"{kind}/test_component.py", folder / "tests" / f"test_{package}.py"),
    ):
        text = (FOLDER / template).read_text(encoding="utf-8")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(re.sub("|".join(words), lambda found: words[found[0]], text), encoding="utf-8")
    (source / "py.typed").touch()
    # The mode of a temporary folder is for its owner alone.
    shutil.copymode(folder.parents[1], folder)


def _component_name(name: str, kind: str) -> str:
    """Return what recipes call it: the distribution's name without what goes without saying."""
    short = name.removeprefix(PREFIX)
    return short.removesuffix(f"-{kind}") or short


def _check_name(name: str, kind: str, component: str, shop: Workshop) -> None:
    if not VALID_NAME.fullmatch(name):
        raise PluginError(
            f"'{name}' cannot name a distribution and its package: it needs lower-case letters, digits and single "
            f"hyphens, and begins with a letter, as {PREFIX}centre-assigner"
        )
    package = name.replace("-", "_")
    if keyword.iskeyword(package) or package in sys.stdlib_module_names:
        raise PluginError(f"'{name}': '{package}' is a word of Python itself; choose another, as {PREFIX}{name}")
    if importlib.util.find_spec(package) is not None:
        raise PluginError(f"'{name}': a package '{package}' is installed already; choose another name")
    if not component[0].isalpha():
        raise PluginError(
            f"'{name}': no class can be named after '{component}', which begins with a digit; put a word before it, as "
            f"{PREFIX}my-{component}-{kind}"
        )
    if component in shop.names(kind):
        raise PluginError(
            f"'{name}': recipes would call it '{component}', a name that another {kind} has; choose another name"
        )
