"""Study files: every mistake of their form at once, in words that say what would be right."""

import subprocess
import sys
from pathlib import Path

import pytest

from detloom.errors import RecipeError
from detloom.study.settings import load_study

GOOD = 'recipe = "yolov7-tiny"\ndata = "data"\n'
AXES = '[axes]\nassigner = ["yolov7", "atss"]\n'


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "study.toml"
    path.write_text(text, encoding="utf-8")
    return path


def complaint(tmp_path: Path, text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_study(written(tmp_path, text))
    return str(caught.value)


def test_study_with_defaults(tmp_path: Path) -> None:
    study = load_study(written(tmp_path, GOOD + AXES + "[overrides]\ntrain.epochs = 3\n'data.image_size' = 64\n"))

    assert (study.name, study.design, study.settings.seeds) == ("study", "one-at-a-time", (0, 1, 2))
    assert study.axes == {"assigner": ("yolov7", "atss")}
    assert study.overrides == {"train.epochs": 3, "data.image_size": 64}


def test_named_cells_are_flattened_to_dotted_keys(tmp_path: Path) -> None:
    cells = '[cells.plain]\n[cells.mine]\nassigner = { use = "paa", candidates = 9 }\nhead.implicit = false\n'

    study = load_study(written(tmp_path, GOOD + cells))

    assert study.design == "cells"
    assert study.cells["mine"] == {"assigner": {"use": "paa", "candidates": 9}, "head.implicit": False}


def test_recipe_path_is_relative_to_the_study(tmp_path: Path) -> None:
    study = load_study(written(tmp_path, GOOD.replace("yolov7-tiny", "mine.toml") + AXES))

    assert study.settings.recipe == str(tmp_path / "mine.toml")


def test_plugins_of_a_study_are_relative_to_it_and_those_of_the_command_are_not(tmp_path: Path) -> None:
    path = written(tmp_path, 'plugins = ["code/mine.py"]\n' + GOOD + AXES)

    study = load_study(path, plugins=[Path("here.py")])

    assert study.settings.plugins == (str(tmp_path / "code" / "mine.py"), "here.py")


def test_all_mistakes_are_told_at_once_with_suggestions(tmp_path: Path) -> None:
    text = 'recipe = 3\nsedes = [1]\nseeds = [0, 0]\n[axes]\nasigner = ["a", "b"]\n"train.seed" = [1, 2]\n'

    said = complaint(tmp_path, text + '"train.epochs" = [3]\n[overrides]\n"data.holdout" = 0.2\n')

    for part in (
        "'recipe' is 3",
        "'data' is missing",
        "'sedes'. Did you mean 'seeds'?",
        "'seeds' has one twice",
        "'asigner'. Did you mean 'assigner'?",
        "'train.seed' cannot be set here: `seeds` says",
        "'train.epochs' must be an array of two values at least, the baseline's first; got [3]",
        "[overrides]: 'data.holdout' cannot be set here: it would measure each seed on other pictures",
    ):
        assert part in said


def test_design_below_the_axes_is_told_where_it_belongs(tmp_path: Path) -> None:
    said = complaint(tmp_path, GOOD + AXES + 'design = "grid"\n')

    assert "[axes]: 'design' stands below [axes], so TOML takes it for an axis; move the line above [axes]" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "a study needs either [axes], of which cells are made, or [cells.NAME] tables; it has neither"),
        (AXES + "[cells.a]\n[cells.b]\n", "keep one of them"),
        ("[axes]\n", "[axes]: there is none"),
        ('[axes]\nassigner = ["atss", "atss"]\n', "'assigner' has a value twice"),
        (
            "[axes]\nhead.implicit = [true, false]\n",
            "'head' is a table; TOML reads a dotted key so unless it is quoted",
        ),
        ("[axes]\ntrain = [1, 2]\n", "'train' fills no slot; name a setting of it"),
        ("[cells.a]\n", "two cells at least"),
        ('design = "grid"\n[cells.a]\n[cells.b]\n', "'design' says how [axes] become cells; leave it out"),
        ("[cells]\na = 1\nb = 2\n", "'a' must be a table of overrides"),
        ("axes = 3\n", "'axes' must be a table"),
        ('design = "gird"\n' + AXES, "'design'"),
    ],
)
def test_mistake_in_form_is_told(tmp_path: Path, text: str, said: str) -> None:
    assert said in complaint(tmp_path, GOOD + text)


def test_missing_file_and_broken_toml_are_told(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="there is no such study file"):
        load_study(tmp_path / "none.toml")
    assert "not valid TOML" in complaint(tmp_path, "recipe = ")


def test_file_of_another_kind_is_told_in_a_line(tmp_path: Path) -> None:
    space = '[space]\nassigner = ["atss", "paa"]\n'

    assert "this is a search, no study; `detloom search " in complaint(tmp_path, space)
    assert "this is a recipe, no study; `detloom train " in complaint(tmp_path, '[head]\nuse = "anchor"\n')
    # A table that is none yet is no mark of a recipe.
    assert "a study needs either [axes]" in complaint(tmp_path, 'data = "d"\nassigner = ["atss", "paa"]\n')


def test_mistakes_of_form_import_no_torch(tmp_path: Path) -> None:
    path = written(tmp_path, "sedes = [1]\n")
    code = (
        "import sys\nfrom detloom.cli import cli\n"
        f"try: cli(['ablate', {str(path)!r}], prog_name='detloom')\n"
        "except SystemExit as end: assert end.code == 2\n"
        "assert 'torch' not in sys.modules\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert "Did you mean 'seeds'?" in done.stderr
