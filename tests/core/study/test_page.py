"""The page, by itself and in a browser."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from detloom.study.page import page
from detloom.study.reporting import Report

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed; apt-get install chromium")


@pytest.fixture
def file(report: Report, tmp_path: Path) -> Path:
    path = tmp_path / "report.html"
    path.write_text(page(report), encoding="utf-8")
    return path


def opened(file: Path, view: str = "") -> str:
    """Return the page as the browser has made it."""
    assert CHROMIUM is not None
    profile = file.parent / "profile"
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={profile}",
        "--dump-dom",
        # Nothing may be fetched: no name is resolved.
        "--host-resolver-rules=MAP * ~NOTFOUND",
        "--virtual-time-budget=2000",
        f"file://{file}#{view}",
    ]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


def shown(dom: str) -> list[str]:
    """Return the names in the first column of the table."""
    body = dom.partition('<table id="cells">')[2].partition("</table>")[0]
    return re.findall(r'<tr[^>]*><td class="cell"><span[^>]*></span>([^<]*)</td>', body)


def test_page_holds_its_data_and_fetches_nothing(file: Path) -> None:
    text = file.read_text(encoding="utf-8")

    found = re.search(r"const data = (\{.*\});", text)
    assert found is not None
    data = json.loads(found[1].replace("<\\/", "</"))
    assert len(data["cells"]) == len(data["rows"]) == len(data["colours"]) == 5
    assert data["pictures"]["names"][0]["name"] == "</script>"
    assert text.count("</script>") == 1
    assert set(re.findall(r"https?://[^\s\"']+", text)) == {"http://www.w3.org/2000/svg"}


def test_page_has_pictures_and_what_each_cell_found_there(file: Path) -> None:
    data = json.loads(re.findall(r"const data = (\{.*\});", file.read_text(encoding="utf-8"))[0].replace("<\\/", "</"))

    assert len(data["pictures"]["images"]) == 6
    for image in data["pictures"]["images"]:
        assert image["source"].startswith("data:image/jpeg;base64,")
        assert [None if found is None else len(found) for found in image["found"]] == [1, 1, 1, None, None]


@needs_browser
def test_browser_shows_all_cells_curves_pictures_and_problems(file: Path) -> None:
    dom = opened(file)

    assert shown(dom) == ["plain", "better", "alike", "broken", "odd"]
    assert "<h1>made: 5 cells, seeds 0, 1, 2</h1>" in dom
    assert dom.count("<polyline") == 9
    assert dom.count("<figure>") == 3
    assert dom.count("<rect") == 3
    assert "odd is impossible: no such size | at all" in dom
    assert "broken, seed 2 failed: a loss is not finite" in dom


@needs_browser
def test_browser_sorts_with_what_was_not_measured_last(file: Path) -> None:
    up, down = opened(file, "sort=AP"), opened(file, "sort=AP&down=1")

    assert shown(down)[0] == "better"
    assert shown(up)[2] == "better"
    assert shown(up)[3:] == shown(down)[3:] == ["broken", "odd"]
    assert 'aria-sort="descending"' in down


@needs_browser
def test_browser_filters_rows_curves_and_pictures(file: Path) -> None:
    dom = opened(file, "filter=HIGHER")

    assert shown(dom) == ["better"]
    assert dom.count("<polyline") == 3
    assert dom.count("<figure>") == 1
