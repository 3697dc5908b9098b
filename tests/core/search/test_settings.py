"""Searches as files: what they may say, and what is said of mistakes."""

import re
from pathlib import Path

import pytest

from detloom.errors import RecipeError
from detloom.search.settings import Search, load_search

GOOD = 'recipe = "yolov7-tiny"\ndata = "none"\n'
SPACE = '[space]\nassigner = ["yolov7", "atss"]\n'


def search(tmp_path: Path, text: str) -> Search:
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return load_search(path)


def complaint(tmp_path: Path, text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        search(tmp_path, text)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('extends = "yolov7-tiny"\n[train]\nepochs = 3\n', "this is a recipe, no search; `detloom train"),
        ('[backbone]\nuse = "elan"\n', "this is a recipe, no search; `detloom train"),
        (GOOD + '[axes]\nassigner = ["atss", "paa"]\n', "this is a study, no search; `detloom ablate"),
        # A table that is none yet, beside what a search has.
        (GOOD + 'assigner = ["yolov7", "atss"]\n', r"a search needs \[space\]"),
    ],
)
def test_file_of_another_kind_is_told_in_a_line(tmp_path: Path, text: str, message: str) -> None:
    assert re.search(message, complaint(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("{ low = 8, high = 32, step = 8 }", (8, 16, 24, 32)),
        ("{ low = 8, high = 30, step = 8 }", (8, 16, 24)),
        ("{ low = 0.1, high = 0.3, step = 0.1 }", (0.1, 0.2, 0.3)),
        ("{ low = 0.0, high = 0.6, step = 0.15 }", (0.0, 0.15, 0.3, 0.45, 0.6)),
        ("{ low = 0.2, high = 0.9, count = 8 }", (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)),
        ("{ low = 1, high = 4, count = 4 }", (1, 2, 3, 4)),
        ("{ low = 1, high = 3, count = 9 }", (1, 2, 3)),
        ("{ low = 1e-4, high = 1e-2, count = 3, log = true }", pytest.approx((1e-4, 1e-3, 1e-2))),
        ("{ low = 8, high = 64, count = 4, log = true }", (8, 16, 32, 64)),
    ],
)
def test_range_becomes_ordered_options(tmp_path: Path, text: str, options: tuple[float, ...]) -> None:
    (choice,) = search(tmp_path, GOOD + f'[space]\n"backbone.depth" = {text}\n').space.choices

    assert choice.options == options
    assert choice.is_ordered


def test_options_are_ordered_where_they_are_numbers_that_ascend(tmp_path: Path) -> None:
    text = '"head.implicit" = [false, true]\n"backbone.depth" = [1, 2]\n"neck.depth" = [2, 1]\n'

    found = search(tmp_path, GOOD + SPACE + text).space.choices

    assert [choice.is_ordered for choice in found] == [False, False, True, False]


def test_space_counts_its_points_and_says_what_they_set(tmp_path: Path) -> None:
    space = search(tmp_path, GOOD + SPACE + '"backbone.depth" = [1, 2, 3]\n').space

    assert space.size == 6
    assert space.overrides((1, 2)) == {"assigner": "atss", "backbone.depth": 3}


@pytest.mark.parametrize("point", [(0,), (0, 3), (-1, 0), [0, 0], (0.0, 1), (True, 0), None])
def test_what_is_no_point_is_told(tmp_path: Path, point: object) -> None:
    space = search(tmp_path, GOOD + SPACE + '"backbone.depth" = [1, 2, 3]\n').space

    assert space.complaint((1, 2)) is None
    assert space.complaint(point)


def test_all_mistakes_are_told_together(tmp_path: Path) -> None:
    text = 'recipe = 3\ntrails = 4\nobjectives = ["gflops", "gflops"]\n[space]\nasigner = ["a", "b"]\n'

    said = complaint(tmp_path, text + '"train.seed" = [1, 2]\n[constraints]\ngflops = 0\nAP = 0.3\n[search]\n')

    for part in (
        "'recipe' is 3",
        "'data' is missing",
        "'trails'. Did you mean 'trials'?",
        "'asigner'. Did you mean 'assigner'?",
        "'train.seed' is no choice",
        "'gflops' must be a number above 0",
        "'AP' is wanted high",
        '[search]: it must say use = "NAME"',
    ):
        assert part in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "needs [space]"),
        ("[space]\nhead.implicit = [true, false]\n", "'head' is a table; TOML reads a dotted key so"),
        ("[space]\ndata.image_size = [256, 320]\n", "'data' is a table; TOML reads a dotted key so"),
        ('[space]\n"data.val" = ["val", "test"]\n', "'data.val' is no choice: all points are measured alike"),
        ('[space]\n"backbone.depth" = { low = 1, high = inf, count = 3 }\n', "needs numbers as low and high"),
        ('[space]\n"backbone.depth" = { low = 1, high = 3, count = 3, log = "yes" }\n', "true or false as log"),
        ('[space]\nassigner = ["atss"]\n', "two options at least"),
        ('[space]\nassigner = ["atss", "atss"]\n', "an option twice"),
        ('[space]\n"backbone.depth" = { low = 1, high = 3 }\n', "either step or count"),
        ('[space]\n"backbone.depth" = { low = 3, high = 1, step = 1 }\n', "low below its high"),
        ('[space]\n"backbone.depth" = { low = 1, high = 3, step = 5 }\n', "a step above 0 that fits"),
        ('[space]\n"backbone.depth" = { low = 0, high = 3, count = 3, log = true }\n', "a low above 0"),
        ('[space]\n"backbone.depth" = { low = "a", high = 3, step = 1 }\n', "needs numbers as low and high"),
        ('[space]\n"backbone.depth" = { low = 1, high = 3, stop = 1 }\n', "has 'stop'"),
        ('[space]\n"backbone.depth" = { low = 1, high = 9, count = 1 }\n', "a count of 2 to 1000"),
        ('[space]\n"backbone.depth" = { low = 1, high = 9, step = 1e-9 }\n', "more than 1000 steps"),
        (SPACE + "trials = 3\n", "'trials' stands below [space]"),
        (SPACE + '[proxy]\nassigner = "paa"\n', "'assigner' is chosen in [space]"),
        (SPACE + "[overrides]\nfoo = 1\n", "no section is called 'foo'"),
        ("space = 3\n", "'space' must be a table"),
        ('objectives = ["gflops", "AP"]\n' + SPACE, "begins with 'gflops'; what is wanted before all"),
        ('objectives = ["AP", "AP"]\n' + SPACE, "has 'AP' twice"),
    ],
)
def test_mistake_is_told_with_what_would_do(tmp_path: Path, text: str, said: str) -> None:
    assert said in complaint(tmp_path, GOOD + text)


def test_true_and_one_are_two_options(tmp_path: Path) -> None:
    found = search(tmp_path, GOOD + '[space]\n"head.implicit" = [true, 1]\n')

    assert found.space.size == 2


def test_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"docs/search\.md"):
        load_search(tmp_path / "none.toml")
