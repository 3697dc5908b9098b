"""What runs beside an exported file on a device, without torch and without detloom."""

import json
from importlib.resources import files
from pathlib import Path

from detloom.host.tables import c_tables, identifier
from detloom.host_spec import HostSpec

__all__ = ["write_host_files"]


def write_host_files(folder: Path, name: str, spec: HostSpec) -> list[str]:
    """Write what turns an exported file's outputs into boxes, and return the files' names.

    These are the description, ``NAME.host.json``; a decoder of one file for numpy; and for C a table of this network
    with the source that goes with any.

    Args:
        folder: Where the exported file lies.
        name: Of the export.
        spec: A description that was checked.

    Raises:
        ArtifactError: A file cannot be written.
    """
    # It brings torch along, which the decoder beside it is free of.
    from detloom.durable import write_text

    word = identifier(name)
    texts = {
        f"{name}.host.json": json.dumps(spec, indent=1, allow_nan=False) + "\n",
        f"{word}_decoder.py": _source("decoder.py"),
        f"{word}_host.h": c_tables(word, spec),
        "detloom_host.h": _source("detloom_host.h"),
        "detloom_host.c": _source("detloom_host.c"),
    }
    for file, text in texts.items():
        write_text(folder / file, text)
    return list(texts)


def _source(file: str) -> str:
    return (files(__name__) / file).read_text(encoding="utf-8")
