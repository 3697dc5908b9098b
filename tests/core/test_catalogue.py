"""Catalogue files, right and wrong."""

from pathlib import Path

import pytest

from detloom.catalogue import bundled_rows, read_catalogue
from detloom.errors import PluginError


def test_bundled_catalogue_is_sorted_in_its_file() -> None:
    text = (Path(__file__).resolve().parents[2] / "registry.toml").read_text(encoding="utf-8")

    tables = [line.strip("[]") for line in text.splitlines() if line.startswith("[")]

    assert tables == sorted(tables)
    assert len(tables) == len(bundled_rows())


def test_all_mistakes_of_a_catalogue_are_told_together(tmp_path: Path) -> None:
    path = tmp_path / "registry.toml"
    path.write_text(
        '[asigner.a]\nmodule = "m"\nsummary = "s"\nreference = "r"\n'
        '[head.b]\nmodule = "m"\nsummary = "s"\n'
        f'[head.c]\nmodule = "m"\nsummary = "{"s" * 61}"\nreference = "r"\n',
        encoding="utf-8",
    )

    with pytest.raises(PluginError) as caught:
        read_catalogue(path, "mine")

    message = str(caught.value)
    assert "no kind is called 'asigner'. Did you mean 'assigner'?" in message
    assert "[head.b]: a row has exactly the keys module, summary, reference" in message
    assert "[head.c]: the summary has 61 characters" in message


def test_broken_toml_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "registry.toml"
    path.write_text("[head", encoding="utf-8")

    with pytest.raises(PluginError, match=r"registry.toml: the catalogue of 'mine' cannot be read"):
        read_catalogue(path, "mine")
