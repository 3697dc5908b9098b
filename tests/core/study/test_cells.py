"""Cells: their names, what they set, and why some are impossible."""

from typing import Any

import pytest
import torch

from detloom.assembly import assemble
from detloom.errors import RecipeError
from detloom.study.cells import base_of, cells_of, checked_cells, label_of
from detloom.study.settings import Study, StudySettings


def study(
    *,
    axes: dict[str, Any] | None = None,
    cells: dict[str, Any] | None = None,
    design: str = "one-at-a-time",
    baseline: str | None = None,
    overrides: dict[str, Any] | None = None,
) -> Study:
    settings = StudySettings(recipe="yolov7-tiny", data="none", baseline=baseline)
    common = {"data.image_size": 64, **(overrides or {})}
    return Study("s", settings, design, axes or {}, cells or {}, common)  # type: ignore[arg-type] # a literal


TWO = {"assigner": ("yolov7", "atss", {"use": "paa", "candidates": 9}), "head.implicit": (True, False)}


def test_one_axis_names_its_cells_after_its_values() -> None:
    assert list(cells_of(study(axes={"assigner": TWO["assigner"]}))) == ["yolov7", "atss", "paa(candidates=9)"]


def test_one_at_a_time_changes_one_axis_of_the_baseline() -> None:
    found = cells_of(study(axes=TWO))

    assert list(found) == ["baseline", "assigner=atss", "assigner=paa(candidates=9)", "implicit=false"]
    assert found["baseline"] == {"assigner": "yolov7", "head.implicit": True}
    assert found["implicit=false"] == {"assigner": "yolov7", "head.implicit": False}


def test_grid_has_every_combination_the_baseline_first() -> None:
    found = cells_of(study(axes=TWO, design="grid"))

    assert len(found) == 6
    assert next(iter(found)) == "assigner=yolov7,implicit=true"
    assert found["assigner=atss,implicit=false"] == {"assigner": "atss", "head.implicit": False}


def test_baseline_can_be_named_and_comes_first() -> None:
    assert list(cells_of(study(axes={"assigner": ("yolov7", "atss")}, baseline="atss"))) == ["atss", "yolov7"]
    with pytest.raises(RecipeError, match=r"the baseline 'ats' is no cell\. Did you mean 'atss'"):
        cells_of(study(axes={"assigner": ("yolov7", "atss")}, baseline="ats"))


def test_names_can_be_directories_and_are_told_apart() -> None:
    assert list(cells_of(study(cells={"a/b c": {}, "../d": {}}, design="cells"))) == ["a-b-c", "d"]
    with pytest.raises(RecipeError, match="two cells are called 'a-b'"):
        cells_of(study(cells={"a/b": {}, "a b": {}}, design="cells"))


@pytest.mark.parametrize(
    ("value", "label"),
    [(True, "true"), (0.5, "0.5"), ([1, 2], "1+2"), ([], "none"), ({"use": "a", "b": {"use": "c"}}, "a(b=c)")],
)
def test_label_of_values(value: object, label: str) -> None:
    assert label_of(value) == label


def test_impossible_cells_have_their_reason_and_possible_ones_their_size() -> None:
    axes = {"assigner": ("yolov7", "atts"), "data.image_size": (64, 65), "head.implicit": (True, False)}

    found = {cell.name: cell for cell in checked_cells(study(axes=axes), num_classes=3)}

    assert "Did you mean 'atss'?" in found["assigner=atts"].reason
    assert "65 x 65" in found["image_size=65"].reason
    for name in ("baseline", "implicit=false"):
        report, recipe = found[name].report, found[name].recipe
        assert report is not None
        assert recipe is not None
        assert report.num_classes == 3
        assert report.deployed_parameters > 1_000_000


def test_impossible_baseline_twins_and_holdout_are_refused() -> None:
    with pytest.raises(RecipeError, match="the baseline, cell 'atts', is impossible"):
        checked_cells(study(axes={"assigner": ("atts", "atss")}))
    with pytest.raises(RecipeError, match="'a' and 'b' come to the same recipe"):
        checked_cells(study(cells={"a": {}, "b": {"data.image_size": 64}}, design="cells"))
    with pytest.raises(RecipeError, match="'holdout' would measure each seed on other pictures"):
        checked_cells(study(cells={"a": {}, "b": {}}, design="cells", overrides={"data.holdout": 0.2}))


def test_a_cells_seed_is_its_runs_seed() -> None:
    cell = checked_cells(study(axes={"assigner": ("yolov7", "atss")}))[0]

    assert cell.seeded(7).train.seed == 7
    assert cell.seeded(7).data.image_size == 64


def test_what_a_cell_does_not_change_begins_with_the_same_weights() -> None:
    weights = {}
    for name, overrides in (
        ("plain", {}),
        ("assigner", {"assigner.use": "atss"}),
        ("head", {"head": {"use": "decoupled"}, "assigner": {"use": "simota"}, "criterion": {"use": "yolox"}}),
    ):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            weights[name] = assemble("yolov7-tiny", overrides, num_classes=2).state_dict()

    def equal(name: str, part: str) -> bool:
        mine = {key: value for key, value in weights[name].items() if key.startswith(part)}
        plain = {key: value for key, value in weights["plain"].items() if key.startswith(part)}
        return mine.keys() == plain.keys() and all(torch.equal(mine[key], plain[key]) for key in mine)

    assert equal("assigner", "")
    assert equal("head", "backbone.")
    assert equal("head", "neck.")
    assert not equal("head", "head.")


def test_study_of_an_unknown_recipe_is_named() -> None:
    unknown = Study("mine", StudySettings(recipe="yolov7-tinyy", data="none"), "grid", {}, {}, {})

    with pytest.raises(RecipeError, match=r"mine.toml, 'recipe': no recipe is called 'yolov7-tinyy'"):
        base_of(unknown)
