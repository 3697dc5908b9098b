"""The studies in ``examples/studies/``, which repeat the designs of the YOLOv7 paper's ablations."""

from pathlib import Path

import pytest

from detloom.assembly import CheckReport
from detloom.kinds import Kind
from detloom.study.cells import Cell, checked_cells
from detloom.study.settings import load_study

ROOT = Path(__file__).parent.parent
STUDIES = {path.stem: path for path in sorted((ROOT / "examples" / "studies").glob("*.toml"))}


def cells_of(name: str) -> dict[str, Cell]:
    """Return the checked cells, as ``detloom ablate --dry-run`` has them."""
    return {cell.name: cell for cell in checked_cells(load_study(STUDIES[name]), num_classes=3)}


def report_of(cell: Cell) -> CheckReport:
    assert cell.report is not None, cell.reason
    return cell.report


def test_each_table_from_3_to_8_has_its_study() -> None:
    assert [name.split("-")[1] for name in STUDIES] == ["3", "4", "5", "6", "7", "8"]


@pytest.mark.parametrize("name", STUDIES)
def test_every_cell_passes_the_check(name: str) -> None:
    assert {cell.name: cell.reason for cell in cells_of(name).values() if cell.reason} == {}


@pytest.mark.parametrize("name", STUDIES)
def test_one_command_stands_at_the_head_and_the_page_names_the_study(name: str) -> None:
    head = STUDIES[name].read_text(encoding="utf-8").partition("\nrecipe = ")[0].splitlines()
    page = (ROOT / "docs" / "ablation.md").read_text(encoding="utf-8")

    assert all(line.startswith("#") for line in head)
    assert [line for line in head if "detloom ablate" in line] == [f"#     detloom ablate examples/studies/{name}.toml"]
    assert f"table {name.split('-')[1]}" in head[0] + head[1]
    assert f"`{name}`" in page


def test_scaled_models_have_grown_alike() -> None:
    parameters = {name: report_of(cell).deployed_parameters for name, cell in cells_of("table-3-scaling").items()}
    growth = {name: number / parameters["base"] for name, number in parameters.items() if name != "base"}

    # The paper's: 1.56, 1.47 and 1.52.
    assert list(growth) == ["width-only", "depth-only", "compound"]
    assert all(1.45 < each < 1.6 for each in growth.values())


@pytest.mark.parametrize("name", [name for name in STUDIES if "scaling" not in name])
def test_what_is_trained_otherwise_is_deployed_alike(name: str) -> None:
    reports = [report_of(cell) for cell in cells_of(name).values()]

    assert len({(each.deployed_parameters, each.deployed_gflops) for each in reports}) == 1
    assert len({each.training_parameters for each in reports}) > 1


@pytest.mark.parametrize("name", [name for name in STUDIES if "auxiliary" in name or "bound" in name])
def test_baseline_has_no_auxiliary_head_and_no_assigner_for_one(name: str) -> None:
    baseline, *others = (cell.recipe for cell in cells_of(name).values())

    assert baseline is not None
    assert baseline.tables[Kind.ASSIGNER]["use"] == "yolov7"
    assert baseline.tables[Kind.NECK]["auxiliary"] == []
    for recipe in others:
        assert recipe is not None
        assert recipe.tables[Kind.ASSIGNER]["inner"] == {"use": "yolov7"}
        assert recipe.tables[Kind.NECK]["auxiliary"] == [64, 128, 256]
