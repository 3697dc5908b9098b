"""Recipes: layers, origins and mistakes."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from detloom.assembly import check
from detloom.errors import RecipeError
from detloom.recipe import load_recipe, parse_override


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / f"{name}.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_changed_use_leaves_no_setting_of_the_old_component(tmp_path: Path) -> None:
    write(tmp_path, "base", '[assigner]\nuse = "yolov7"\ncandidates = 10\n')
    child = write(tmp_path, "child", 'extends = "base.toml"\n[assigner]\nuse = "atss"\n')

    recipe = load_recipe(child)

    assert recipe.tables["assigner"] == {"use": "atss"}


def test_same_use_merges_key_by_key(tmp_path: Path) -> None:
    write(tmp_path, "base", '[assigner]\nuse = "yolov7"\ncandidates = 10\nreach = 0.5\n')
    child = write(tmp_path, "child", 'extends = "base.toml"\n[assigner]\ncandidates = 20\n')

    recipe = load_recipe(child)

    assert recipe.tables["assigner"] == {"use": "yolov7", "candidates": 20, "reach": 0.5}
    assert recipe.origins["assigner.candidates"] == str(child)
    assert recipe.origins["assigner.reach"] == str(tmp_path / "base.toml")


@pytest.mark.parametrize("passes", ["['fuse-bm']", "[3]", "'fuse-bn'", "[{ use = 'fuse-bn', x = 1 }]"])
def test_mistake_in_an_array_of_passes_names_the_file_that_set_it(tmp_path: Path, passes: str) -> None:
    child = write(tmp_path, "child", f'extends = "yolov7-tiny"\n[reparam]\npasses = {passes}\n')

    with pytest.raises(RecipeError) as caught:
        check(child)

    assert f"{child} [reparam]: " in str(caught.value)
    assert " + " not in str(caught.value)


def test_arrays_are_replaced_whole(tmp_path: Path) -> None:
    write(tmp_path, "base", '[reparam]\npasses = ["fold-implicit", "fuse-bn"]\n')
    child = write(tmp_path, "child", 'extends = "base.toml"\n[reparam]\npasses = ["fuse-bn"]\n')

    assert load_recipe(child).tables["reparam"]["passes"] == ["fuse-bn"]


def test_overrides_are_one_more_layer(tmp_path: Path) -> None:
    path = write(tmp_path, "base", '[assigner]\nuse = "yolov7"\ncandidates = 10\n')

    recipe = load_recipe(path, {"assigner.use": "atss", "assigner.candidates": 9})

    assert recipe.tables["assigner"] == {"use": "atss", "candidates": 9}
    assert recipe.origins["assigner.candidates"] == "overrides"


def test_loading_leaves_the_recipe_that_was_overridden_unchanged(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, "base", '[assigner]\nuse = "yolov7"\n'))

    load_recipe(recipe, {"assigner.candidates": 3})

    assert recipe.tables["assigner"] == {"use": "yolov7"}


def test_extending_in_a_circle_is_an_error_that_shows_the_circle(tmp_path: Path) -> None:
    first = write(tmp_path, "first", 'extends = "second.toml"\n')
    write(tmp_path, "second", 'extends = "first.toml"\n')

    with pytest.raises(RecipeError, match=r"goes round in a circle: .*first.toml -> .*second.toml -> .*first.toml"):
        load_recipe(first)


def test_all_mistakes_in_names_and_structure_come_together(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "wrong",
        '[assigner]\nuse = "atts"\n[asigner]\nx = 1\n[train]\nepoch = 3\nbatch = "four"\n'
        "[head]\nnum_classes = 0\n[reparam]\npasses = ['fuse-bm']\n[observers.csw]\n",
    )

    with pytest.raises(RecipeError) as caught:
        load_recipe(path)

    message = str(caught.value)
    for expected in (
        "[assigner]: no assigner is called 'atts'. Did you mean 'atss'?",
        "[asigner]: no section is called 'asigner'. Did you mean 'assigner'?",
        "[train]: no setting is called 'epoch'. Did you mean 'epochs'?",
        "[train]: 'batch' is \"four\": it must be a whole number of at least 1",
        "[head]: `use` must name a head; known heads: ",
        "[head]: 'num_classes' is 0: it must be a whole number of at least 1",
        "no reparam is called 'fuse-bm'. Did you mean 'fuse-bn'?",
        "no observer is called 'csw'. Did you mean 'csv'?",
    ):
        assert expected in message
    assert message.count(str(path)) >= 8


def test_unknown_recipe_name_is_suggested() -> None:
    with pytest.raises(RecipeError, match=r"no recipe is called 'yolov7-tinny'. Did you mean 'yolov7-tiny'\?"):
        load_recipe("yolov7-tinny")


def test_missing_file_and_broken_toml_name_the_file(tmp_path: Path) -> None:
    broken = write(tmp_path, "broken", "[train\n")

    with pytest.raises(RecipeError, match=r"absent.toml: there is no such recipe file"):
        load_recipe(tmp_path / "absent.toml")
    with pytest.raises(RecipeError, match=r"broken.toml: this is not valid TOML: .*line 1"):
        load_recipe(broken)


def test_resolved_recipe_survives_being_written_and_read(tmp_path: Path) -> None:
    recipe = load_recipe("yolov7-tiny", {"train.epochs": 3})
    path = tmp_path / "written.toml"

    path.write_text(recipe.to_toml(), encoding="utf-8")

    assert load_recipe(path).tables == recipe.tables


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train.epochs=3", ("train.epochs", 3)),
        ("assigner.use=atss", ("assigner.use", "atss")),
        ("head.implicit=false", ("head.implicit", False)),
        ("reparam.passes=['fuse-bn']", ("reparam.passes", ["fuse-bn"])),
        ("train.init_from=a=b.safetensors", ("train.init_from", "a=b.safetensors")),
    ],
)
def test_override_is_toml_or_else_text(text: str, expected: tuple[str, object]) -> None:
    assert parse_override(text) == expected


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n\x00\xff", 'summary = "d\u00e9"'.encode("latin-1")])
def test_file_that_is_no_text_is_refused_in_words(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(content)

    with pytest.raises(RecipeError) as caught:
        load_recipe(path)

    assert str(caught.value) == (
        f"{path}: the recipe cannot be read: it is not text in UTF-8; give a TOML file, and save it as UTF-8"
    )


@pytest.mark.parametrize("source", [".", "folder", "./folder"])
def test_folder_is_called_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)

    with pytest.raises(RecipeError, match="this is a folder; give a recipe's file"):
        load_recipe(source)


def test_folder_does_not_hide_a_bundled_recipe_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "yolov7-tiny").mkdir()
    monkeypatch.chdir(tmp_path)

    assert load_recipe("yolov7-tiny").name == "yolov7-tiny"


def test_override_without_equals_says_how_to_write_it() -> None:
    with pytest.raises(RecipeError, match="write key=value"):
        parse_override("train.epochs")


@pytest.mark.parametrize("value", ["[64,64", "{a=1", '"text', "'text"])
def test_override_that_begins_as_toml_must_be_toml(value: str) -> None:
    with pytest.raises(RecipeError, match=r"^--set data.image_size=.* is not valid TOML: "):
        parse_override(f"data.image_size={value}")


def test_names_and_structure_are_checked_without_torch() -> None:
    code = (
        "import sys, detloom\n"
        "try: detloom.load_recipe('yolov7-tiny', {'assigner.use': 'atts'})\n"
        "except detloom.DetloomError as error: assert 'atss' in str(error), error\n"
        "else: raise SystemExit('no error')\n"
        "heavy = {'torch', 'timm', 'albumentations', 'cv2', 'pycocotools', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr


def test_complaint_names_the_file_that_set_the_key(tmp_path: Path) -> None:
    base = write(tmp_path, "base", "[train]\nepochs = 0\n")
    child = write(tmp_path, "child", 'extends = "base.toml"\n[train]\nbatch = 0\n')

    with pytest.raises(RecipeError) as caught:
        load_recipe(child)

    assert f"{base} [train]: 'epochs' is 0" in str(caught.value)
    assert f"{child} [train]: 'batch' is 0" in str(caught.value)


def test_override_that_no_recipe_could_hold_is_refused_at_once() -> None:
    with pytest.raises(RecipeError, match=r"overrides train.init_from: None cannot be written in TOML"):
        load_recipe("yolov7-tiny", {"train.init_from": None})


def test_path_and_tuple_overrides_become_what_toml_has(tmp_path: Path) -> None:
    recipe = load_recipe("yolov7-tiny", {"train.init_from": tmp_path, "train.freeze": ("backbone",)})

    assert recipe.tables["train"]["init_from"] == str(tmp_path)
    assert recipe.tables["train"]["freeze"] == ["backbone"]


def test_key_given_twice_in_two_forms_is_refused() -> None:
    with pytest.raises(RecipeError, match="'train' is given both as a table and key by key"):
        load_recipe("yolov7-tiny", {"train.epochs": 3, "train": {"batch": 2}})


def test_observer_that_is_no_table_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"'csv' must be a table of settings, as \[observers.csv\], got 3"):
        load_recipe("yolov7-tiny", {"observers.csv": 3})


def test_values_in_complaints_about_structure_are_written_as_in_toml(tmp_path: Path) -> None:
    path = write(tmp_path, "odd", 'train = true\n[head]\nnum_classes = "three"\n[reparam]\npasses = [false]\n')

    with pytest.raises(RecipeError) as caught:
        load_recipe(path)

    message = str(caught.value)
    assert "'train' must be a table, got true" in message
    assert "'num_classes' is \"three\": it must be" in message
    assert "false names no pass" in message


def test_recipe_that_extends_itself_is_told_so(tmp_path: Path) -> None:
    path = write(tmp_path, "mine", 'extends = "mine.toml"\n')

    with pytest.raises(RecipeError, match=r"mine.toml: the recipe extends itself; name another"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs = 3\n", r"no section is called 'epochs'\. Did you mean train\.epochs\?"),
        ('[observers]\nuse = "csv"\n', r"observers have no `use`; each has a table of its own, as \[observers\.csv\]$"),
        ("[assigner]\nreach = 3\n", r"`use` must name an assigner;"),
        ("[backbone]\ndepth = 3\n", r"`use` must name a backbone;"),
    ],
)
def test_misplaced_key_is_told_where_it_belongs(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(write(tmp_path, "mine", text))


@pytest.mark.parametrize("wrong", [None, 3, ["yolov7-tiny"], {"head": {}}])
def test_what_names_no_recipe_is_refused(wrong: Any) -> None:
    with pytest.raises(RecipeError, match=r"^recipe: .* names none; give a bundled name, as 'yolov7-tiny', the path"):
        load_recipe(wrong)


@pytest.mark.parametrize("wrong", [["head.num_classes=3"], [], 3, "head.num_classes=3", {3: 1}])
def test_overrides_that_are_no_table_are_refused(wrong: Any) -> None:
    with pytest.raises(RecipeError, match=r'^overrides: .* is no table of values by dotted key; write \{"head'):
        load_recipe("yolov7-tiny", wrong)
