"""What may be exported to: exporters, their devices, and what is said of other names."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from detloom.errors import ExportError, RecipeError
from detloom.export.targets import choose_target, known_targets
from detloom.workshop import Workshop

PLUGIN = """
from types import MappingProxyType
from typing import Any
from detloom import hookimpl
from detloom.interfaces import Exporter

PLUGIN_API = 1

class Mine(Exporter):
    targets = MappingProxyType({{"board-1": {{"bits": 8}}, "{shared}": {{"bits": 16}}}})

    def __init__(self, *, bits: int = 32) -> None:
        self.bits = bits

    @classmethod
    def missing(cls) -> str | None:
        return {missing!r}

    def check(self, network: Any) -> Any: ...
    def export(self, network: Any, calibration_NCHW: Any, folder: Any) -> Any: ...
    def runners(self, exported: Any, folder: Any) -> Any: ...

@hookimpl
def register_components(register: Any) -> None:
    register("{name}", Mine)
"""


@pytest.fixture
def shop_of(tmp_path: Path) -> Callable[..., Workshop]:
    """Return a function of descriptions of exporters to a workshop that has them."""

    def make(*exporters: Mapping[str, Any]) -> Workshop:
        shop = Workshop()
        for each in exporters:
            words = {"missing": None, "shared": "board-2", **each}
            file = tmp_path / f"{words['name'].replace('-', '_')}.py"
            file.write_text(PLUGIN.format(**words))
            shop.load_file(file)
        return shop

    return make


def test_exporter_and_its_devices_can_be_named(shop_of: Callable[..., Workshop]) -> None:
    shop = shop_of({"name": "mine"})

    found = [choose_target(name, {}, shop=shop) for name in ("mine", "board-1", "mine/board-2")]

    assert [each.exporter.bits for each in found] == [32, 8, 16]  # type: ignore[attr-defined] # its class is in a file
    assert {each.name for each in found} == {"mine"}


def test_settings_go_over_those_of_the_device(shop_of: Callable[..., Workshop]) -> None:
    chosen = choose_target("board-1", {"bits": 4}, shop=shop_of({"name": "mine"}))

    assert chosen.settings == {"bits": 4}


def test_wrong_setting_is_told_with_the_target(shop_of: Callable[..., Workshop]) -> None:
    with pytest.raises(RecipeError, match=r"--target board-1, the exporter 'mine': .*'bit'.* Did you mean 'bits'\?"):
        choose_target("board-1", {"bit": 4}, shop=shop_of({"name": "mine"}))


def test_exporter_cannot_be_set(shop_of: Callable[..., Workshop]) -> None:
    with pytest.raises(RecipeError, match="--set use: the exporter is named by --target"):
        choose_target("board-1", {"use": "other"}, shop=shop_of({"name": "mine"}))


def test_misspelt_device_gets_a_suggestion_of_all_exporters(shop_of: Callable[..., Workshop]) -> None:
    shop = shop_of({"name": "mine"}, {"name": "other", "shared": "gadget"})

    with pytest.raises(ExportError) as caught:
        choose_target("gadgit", {}, shop=shop)

    assert "--target gadgit: no exporter and no device is called that. Did you mean 'gadget'?" in str(caught.value)
    known = str(caught.value).partition("exporters: ")[2].partition("  ")[0].split(", ")
    assert {"mine", "other"} <= set(known)
    assert "`detloom export --targets` lists them with their devices" in str(caught.value)


def test_device_of_several_exporters_asks_which(shop_of: Callable[..., Workshop]) -> None:
    shop = shop_of({"name": "mine"}, {"name": "other"})

    with pytest.raises(ExportError, match="say which: --target mine/board-2 or --target other/board-2"):
        choose_target("board-2", {}, shop=shop)


def test_missing_packages_are_told_before_anything_is_done(shop_of: Callable[..., Workshop]) -> None:
    shop = shop_of({"name": "mine", "missing": "the compiler is missing: pip install compiler"})

    with pytest.raises(ExportError, match=r"^--target board-1: the compiler is missing: pip install compiler$"):
        choose_target("board-1", {}, shop=shop)


def test_targets_are_listed_exporter_first(shop_of: Callable[..., Workshop]) -> None:
    found = [each for each in known_targets(shop_of({"name": "mine"})) if each.exporter == "mine"]

    assert [each.name for each in found] == ["mine", "board-1", "board-2"]
