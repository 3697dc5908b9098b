"""Plugins of third parties, as they misbehave."""

import sys
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from textwrap import dedent

import pytest
from click.testing import CliRunner

from detloom.catalogue import Row
from detloom.errors import PluginError, RecipeError
from detloom.kinds import Kind
from detloom.workshop import Workshop

ASSIGNER = """
    from detloom import hookimpl
    from detloom.interfaces import Assigner

    class Mine(Assigner):
        def assign(self, predictions, targets):
            raise NotImplementedError

    @hookimpl
    def register_components(register):
        register("{name}", Mine)
"""

Write = Callable[[str, str], EntryPoint]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write a module and return the entry point that names it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    written: list[str] = []

    def module(name: str, text: str) -> EntryPoint:
        (tmp_path / f"{name}.py").write_text(dedent(text), encoding="utf-8")
        written.append(name)
        return EntryPoint(name, name, "detloom.plugins")

    yield module
    for name in written:
        sys.modules.pop(name, None)


def test_component_of_a_third_party_is_found_by_its_entry_point(write: Write) -> None:
    point = write("plugin_fine", ASSIGNER.format(name="mine"))

    found = Workshop(rows=(), installed=[point], disabled=()).component(Kind.ASSIGNER, "mine")

    assert found.__name__ == "Mine"


def test_third_party_is_not_imported_for_a_bundled_name(write: Write) -> None:
    point = write("plugin_unneeded", "raise SystemError('imported')")
    shop = Workshop(installed=[point], disabled=())

    shop.component(Kind.ASSIGNER, "atss")

    assert "plugin_unneeded" not in sys.modules


def test_wrong_name_gets_a_suggestion_and_the_known_names(write: Write) -> None:
    shop = Workshop(rows=(), installed=[write("plugin_near", ASSIGNER.format(name="atss"))], disabled=())

    with pytest.raises(RecipeError, match=r"my.toml \[assigner\]: no assigner is called 'atts'. Did you mean 'atss'\?"):
        shop.component(Kind.ASSIGNER, "atts", where="my.toml [assigner]")


def test_word_of_a_summary_leads_to_its_component() -> None:
    shop = Workshop(installed=[], disabled=())

    with pytest.raises(RecipeError, match=r"no reparam is called 'repconvn'. Did you mean 'merge-repconv' \(The "):
        shop.component(Kind.REPARAM, "repconvn")


def test_raising_plugin_is_named_and_leaves_the_others_working(write: Write) -> None:
    broken = write("plugin_broken", "raise ValueError('no licence')")
    fine = write("plugin_works", ASSIGNER.format(name="mine"))
    shop = Workshop(rows=(), installed=[broken, fine], disabled=())

    assert shop.component(Kind.ASSIGNER, "mine").__name__ == "Mine"
    with pytest.raises(RecipeError, match=r"plugin 'plugin_broken' .* was left out: ValueError: no licence"):
        shop.component(Kind.ASSIGNER, "absent")


def test_plugin_that_fails_halfway_leaves_nothing_behind(write: Write) -> None:
    halfway = write("plugin_halfway", ASSIGNER.format(name="mine") + "        raise RuntimeError('halfway')\n")
    shop = Workshop(rows=(), installed=[halfway], disabled=())

    with pytest.raises(RecipeError, match=r"(?s)no assigner is called 'mine'.*name that file: --plugin FILE"):
        shop.component(Kind.ASSIGNER, "mine")


def test_same_name_from_two_plugins_names_both(write: Write) -> None:
    points = [write(name, ASSIGNER.format(name="mine")) for name in ("plugin_one", "plugin_two")]
    shop = Workshop(rows=(), installed=points, disabled=())

    with pytest.raises(PluginError, match=r"offered twice, by 'plugin_one' .* and 'plugin_two'"):
        shop.component(Kind.ASSIGNER, "mine")


def test_plugin_may_not_take_a_bundled_name(write: Write) -> None:
    shop = Workshop(installed=[write("plugin_thief", ASSIGNER.format(name="atss"))], disabled=())

    shop.load_third_parties()

    fault = shop.plugins()[0].fault
    assert fault is not None
    assert "the assigner 'atss', a name that detloom itself has" in fault


def test_misspelt_hook_is_an_error_with_a_suggestion(write: Write) -> None:
    misspelt = write(
        "plugin_misspelt", ASSIGNER.format(name="mine").replace("register_components", "register_component")
    )
    shop = Workshop(rows=(), installed=[misspelt], disabled=())

    shop.load_third_parties()

    fault = shop.plugins()[0].fault
    assert fault is not None
    assert "'register_component' is no hook of detloom. Did you mean 'register_components'?" in fault


def test_misspelt_plugin_does_not_taint_a_later_one(write: Write) -> None:
    misspelt = write("plugin_a", ASSIGNER.format(name="one").replace("register_components", "register_component"))
    fine = write("plugin_b", ASSIGNER.format(name="two"))
    shop = Workshop(rows=(), installed=[misspelt, fine], disabled=())

    assert shop.component(Kind.ASSIGNER, "two").__name__ == "Mine"


def test_plugin_without_a_hook_is_told_what_to_write(write: Write) -> None:
    shop = Workshop(rows=(), installed=[write("plugin_empty", "x = 1")], disabled=())

    shop.load_third_parties()

    fault = shop.plugins()[0].fault
    assert fault is not None
    assert "register_components" in fault


def test_class_without_a_method_of_its_contract_is_refused_with_its_name(write: Write) -> None:
    point = write("plugin_halfway", ASSIGNER.format(name="mine").replace("def assign(", "def asign("))

    with pytest.raises(RecipeError, match=r"Mine has no assign, which Assigner demands"):
        Workshop(rows=(), installed=[point], disabled=()).component(Kind.ASSIGNER, "mine")


def test_object_in_place_of_a_class_is_refused(write: Write) -> None:
    point = write("plugin_built", ASSIGNER.format(name="mine").replace(", Mine)", ", Mine())"))

    with pytest.raises(RecipeError, match=r"Mine\(\) is a component that was built; register the class: Mine"):
        Workshop(rows=(), installed=[point], disabled=()).component(Kind.ASSIGNER, "mine")


def test_class_of_no_kind_is_refused(write: Write) -> None:
    stranger = write(
        "plugin_stranger",
        """
        from detloom import hookimpl

        @hookimpl
        def register_components(register):
            register("dict", dict)
        """,
    )
    shop = Workshop(rows=(), installed=[stranger], disabled=())

    shop.load_third_parties()

    fault = shop.plugins()[0].fault
    assert fault is not None
    assert "is no component" in fault


def test_disabled_plugin_is_not_imported_and_the_message_says_so(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    point = write("plugin_off", ASSIGNER.format(name="mine"))
    monkeypatch.setenv("DETLOOM_DISABLE_PLUGINS", " plugin_off, ")
    shop = Workshop(rows=(), installed=[point])

    with pytest.raises(RecipeError, match="switched off by DETLOOM_DISABLE_PLUGINS: plugin_off"):
        shop.component(Kind.ASSIGNER, "mine")
    assert "plugin_off" not in sys.modules


def write_listed(folder: Path, name: str, code: str) -> EntryPoint:
    """Write a package with a catalogue that lists the assigner ``mine``."""
    package = folder / name
    package.mkdir()
    (package / "__init__.py").write_text(dedent(code), encoding="utf-8")
    (package / "registry.toml").write_text(
        f'[assigner.mine]\nmodule = "{name}"\nsummary = "Mine"\nreference = "none"\n', encoding="utf-8"
    )
    return EntryPoint(name, name, "detloom.plugins")


@pytest.mark.usefixtures("write")
def test_name_of_a_plugin_that_was_left_out_gets_the_reason_first(tmp_path: Path) -> None:
    point = write_listed(tmp_path, "plugin_listed_broken", "raise ValueError('no licence')")
    shop = Workshop(rows=(), installed=[point], disabled=())

    with pytest.raises(RecipeError) as caught:
        shop.component(Kind.ASSIGNER, "mine")

    first, known = str(caught.value).splitlines()
    assert first.startswith("the assigner 'mine' cannot be used: plugin 'plugin_listed_broken' ")
    assert first.endswith("was left out: ValueError: no licence")
    assert "mine" not in known
    assert shop.complaint(Kind.ASSIGNER, "mine") == str(caught.value)


@pytest.mark.usefixtures("write")
def test_name_that_a_catalogue_lists_and_no_hook_registers_is_told_so(tmp_path: Path) -> None:
    point = write_listed(tmp_path, "plugin_listed_other", ASSIGNER.format(name="other"))
    shop = Workshop(rows=(), installed=[point], disabled=())

    with pytest.raises(RecipeError, match=r"the plugin 'plugin_listed_other' lists the assigner 'mine', but") as caught:
        shop.component(Kind.ASSIGNER, "mine")

    assert "Did you mean" not in str(caught.value)


@pytest.mark.usefixtures("write")
def test_catalogue_of_a_third_party_is_listed_without_importing_it(tmp_path: Path) -> None:
    point = write_listed(tmp_path, "plugin_listed", "raise SystemError('imported')")

    rows = Workshop(rows=(), installed=[point], disabled=()).rows()

    assert [(row.kind, row.name) for row in rows] == [("assigner", "mine")]
    assert "plugin_listed" not in sys.modules


def test_bundled_module_must_register_what_its_rows_say(write: Write) -> None:
    write("plugin_rows", ASSIGNER.format(name="mine"))
    rows = (Row("assigner", "other", "plugin_rows", "", "", "detloom"),)

    with pytest.raises(PluginError, match=r"registers assigner 'mine', but the catalogue lists assigner 'other'"):
        Workshop(rows=rows, installed=(), disabled=()).component(Kind.ASSIGNER, "other")


def test_every_bundled_module_registers_exactly_its_rows() -> None:
    shop = Workshop(installed=(), disabled=())

    shop.load_bundled()

    assert all(shop.component(Kind(row.kind), row.name) for row in shop.rows() if row.kind != "recipe")


@pytest.mark.usefixtures("write")
def test_doctor_does_not_count_what_was_left_out_and_gives_the_reason_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from detloom.cli import doctor

    point = write_listed(tmp_path, "plugin_listed_fails", "raise ValueError('no licence')")
    shop = Workshop(rows=(), installed=[point], disabled=())
    monkeypatch.setattr(doctor, "Workshop", lambda **_: shop)

    result = CliRunner().invoke(doctor.command)

    assert result.exit_code == 2
    assert "0 components imported" in result.output
    assert result.output.count("plugin_listed_fails' (") == 1


def test_switch_of_a_plugin_that_is_not_there_is_refused(write: Write) -> None:
    point = write("plugin_on", ASSIGNER.format(name="mine"))

    with pytest.raises(PluginError, match=r"under the name 'plugin_one'\. Did you mean 'plugin_on'"):
        Workshop(rows=(), installed=[point], disabled=("plugin_one",))


def test_plugin_of_another_api_version_is_told_before_any_of_it_runs(write: Write) -> None:
    newer = write("plugin_newer", "PLUGIN_API = 2\nraise SystemError('imported')")
    fine = write("plugin_of_now", "PLUGIN_API: int = 1\n" + dedent(ASSIGNER.format(name="mine")))
    shop = Workshop(rows=(), installed=[newer, fine], disabled=())

    assert shop.component(Kind.ASSIGNER, "mine").__name__ == "Mine"
    with pytest.raises(RecipeError) as caught:
        shop.component(Kind.ASSIGNER, "absent")

    assert "plugin 'plugin_newer' (no distribution, plugin_newer) was left out: it was written for version 2 of" in str(
        caught.value
    )
    assert "`pip install --upgrade detloom`" in str(caught.value)
    assert "plugin_newer" not in sys.modules


@pytest.mark.usefixtures("write")
def test_catalogue_of_another_api_version_is_not_listed(tmp_path: Path) -> None:
    point = write_listed(tmp_path, "plugin_listed_newer", "PLUGIN_API = 2")
    shop = Workshop(rows=(), installed=[point], disabled=())

    assert shop.rows() == ()
    (plugin,) = shop.plugins()
    assert plugin.fault is not None
    assert "version 2 of the plugin API" in plugin.fault


def test_version_that_is_computed_is_read_after_the_import(write: Write) -> None:
    point = write("plugin_computed", "PLUGIN_API = 1 + 1\n" + dedent(ASSIGNER.format(name="mine")))
    shop = Workshop(rows=(), installed=[point], disabled=())

    with pytest.raises(RecipeError, match="written for version 2"):
        shop.component(Kind.ASSIGNER, "mine")
