"""Descriptions are written whole, and believed only when a host can follow them."""

import copy
import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from host_cases import HEADS, NUMBERS, description, host, outputs, random_maps, split

from detloom.errors import ArtifactError, ExportError
from detloom.host import write_host_files
from detloom.host.reading import read_host_spec
from detloom.host.tables import identifier
from detloom.host_spec import HostSpec

PAGE = Path(__file__).parents[3] / "docs" / "deployment.md"


def anchor(**options: Any) -> HostSpec:
    return description(HEADS["anchor"]().decode_spec(), **options)


def test_a_file_comes_with_what_decodes_it(tmp_path: Path) -> None:
    written = write_host_files(tmp_path, "yolov7-tiny", anchor())

    assert written == [
        "yolov7-tiny.host.json",
        "yolov7_tiny_decoder.py",
        "yolov7_tiny_host.h",
        "detloom_host.h",
        "detloom_host.c",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(written)


def test_the_written_decoder_is_a_module_that_follows_the_written_description(tmp_path: Path) -> None:
    spec = anchor(dtype="int8", layout="NHWC")
    named = outputs(spec, random_maps(spec["decode"], 1))
    write_host_files(tmp_path, "net", spec)

    found = importlib.util.spec_from_file_location("net_decoder", tmp_path / "net_decoder.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    boxes_N4, _, _ = module.Decoder.read(tmp_path / "net.host.json").detect(named)

    assert len(boxes_N4) > 0
    np.testing.assert_array_equal(boxes_N4, host(spec).detect(named)[0])


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"net\.host\.json: cannot be written"):
        write_host_files(tmp_path / "absent", "net", anchor())


@pytest.mark.parametrize(
    ("name", "word"), [("yolov7-tiny", "yolov7_tiny"), ("7 of 9.int8", "_7_of_9_int8"), ("Käse", "K_se")]
)
def test_names_of_files_become_names_of_programs(name: str, word: str) -> None:
    assert identifier(name) == word


@pytest.mark.parametrize("dtype", NUMBERS)
@pytest.mark.parametrize("name", HEADS)
def test_descriptions_of_all_heads_are_read_as_written(tmp_path: Path, name: str, dtype: Any) -> None:
    spec = description(split(HEADS[name]().decode_spec()), dtype=dtype, layout="NHWC")
    path = tmp_path / "net.host.json"
    path.write_text(json.dumps(spec))

    assert read_host_spec(path) == spec


def test_a_single_class_scores_by_its_objectness_as_in_prediction() -> None:
    spec = description(HEADS["anchor of one class"]().decode_spec())

    assert spec["decode"]["score"] == ["objectness"]


def test_a_head_that_contradicts_its_file_is_refused_with_the_file() -> None:
    decode = HEADS["anchor"]().decode_spec()
    decode["num_classes"] = 4

    with pytest.raises(
        ExportError, match=r"network\.bin: no host can follow .*\n  output 'classes' has 3 channels, not 4"
    ):
        description(decode)


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "no such file"), (b"{", "Expecting"), (b"\xff\xfe", "not text in UTF-8"), (b"[" * 10**5, "recursion")],
    ids=["absent", "cut", "binary", "deep"],
)
def test_what_is_no_json_is_refused(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "net.host.json"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(ExportError, match=rf"net.host.json: this description cannot be read: .*{words}"):
        read_host_spec(path)


Change = Callable[[Any], object]

DAMAGES: list[tuple[Change, str]] = [
    (lambda spec: spec.pop("decode"), "'decode' is missing"),
    (lambda spec: spec.update(format=2), "'format' is 2: it must be 1"),
    (lambda spec: spec.update(format=True), "'format' is true: it must be 1"),
    (lambda spec: spec.update(nmaes=[]), "'nmaes' is unknown. Did you mean 'names'?"),
    (lambda spec: spec.update(names="abc"), "'names' is \"abc\": it must be an array of text"),
    (lambda spec: spec.update(names=["a", "b", 3]), "'names.2' is 3: it must be text"),
    (lambda spec: spec.update(names=["a"]), "'names' has 1 entries for 3 classes"),
    (lambda spec: spec.update(input=[]), "'input' must be a table"),
    (lambda spec: spec["input"].update(height=64.5), "'input.height' is 64.5: it must be a whole number"),
    (lambda spec: spec["input"].update(width=2**40), "'input.width' is 1099511627776: it must be a whole number"),
    (lambda spec: spec["input"].update(height=0), "'input' must have at least a row and a column"),
    (lambda spec: spec["input"].update(fill=256), "'input.fill' is 256: it must lie between 0 and 255"),
    (lambda spec: spec["input"].update(scale=None), "'input.scale' is null for int8"),
    (lambda spec: spec["tensors"][1].update(scale=0.0), "'tensors.1.scale' is 0.0 for int8"),
    (lambda spec: spec["tensors"][1].update(scale=float("nan")), "'tensors.1.scale' is NaN: it must be a number"),
    (lambda spec: spec["tensors"][1].update(scale=1e39), "'tensors.1.scale' is 1e+39: it must be a number"),
    (lambda spec: spec["tensors"][1].update(dtype="int4"), '\'tensors.1.dtype\' is "int4": it must be "int8"'),
    (
        lambda spec: spec["tensors"][1].update(shape=[1, 4, 6, 23]),
        "'tensors.1.shape' is [1, 4, 6, 23], not [batch, 4, 6,",
    ),
    (lambda spec: spec["tensors"][1].update(shape=[]), "'tensors.1.shape' is [], not [batch, 4, 6, 24]"),
    (lambda spec: spec["tensors"].pop(), "there are 2 tensors for 3 maps"),
    (lambda spec: spec["decode"].update(score=[]), "'decode.score' is empty"),
    (lambda spec: spec["decode"].update(score=["objectness"]), "'decode.score' must have 'classes' to tell 3 classes"),
    (lambda spec: spec["decode"]["outputs"].pop(1), "'decode.outputs' has no size"),
    (lambda spec: spec["decode"]["outputs"].append(spec["decode"]["outputs"][0]), "'decode.outputs' has a name twice"),
    (lambda spec: spec["decode"]["outputs"][0].update(channels=3), "output 'center' has 3 channels, not 2"),
    (
        lambda spec: spec["decode"]["box"].update(form="corners"),
        "'decode.box' must be a table with 'form', one of center-",
    ),
    (lambda spec: spec["decode"].update(box=None), "'decode.box' must be a table with 'form', one of center-"),
    (
        lambda spec: spec["decode"]["box"]["size"].update(limit="8"),
        "'decode.box.size.limit' is \"8\": it must be a number",
    ),
    (lambda spec: spec["decode"]["box"]["size"].pop("limit"), "'decode.box.size.limit' is missing"),
    (lambda spec: spec["decode"].update(suppression=1), "'decode.suppression' is 1: it must be true or false"),
    (lambda spec: spec["decode"]["levels"][0].update(priors=[]), "'decode.levels.0' must have a stride of at least 1"),
    (lambda spec: spec["decode"]["levels"][0].update(stride=0), "'decode.levels.0' must have a stride of at least 1"),
    (
        lambda spec: spec["decode"].update(maps=[{"level": 9, "outputs": ["size"]}] * 3),
        "'decode.maps.0.level' is 9: there",
    ),
    (
        lambda spec: spec["decode"].update(maps=[{"level": 0, "outputs": ["size"]}] * 3),
        "the maps of level 1 hold nothing,",
    ),
    (lambda spec: spec["decode"].update(levels=[]), "'decode.levels' is empty"),
    (lambda spec: spec["decode"].update(box={"form": "distances", "bins": 0}), "'decode.outputs' has no distances"),
    (lambda spec: spec["selection"].update(score=1.5), "'selection.score' is 1.5: it must lie between 0 and 1"),
    (lambda spec: spec["selection"].update(candidates=0), "'selection.candidates' is 0: it must be at least 1"),
]


@pytest.mark.parametrize(("damage", "words"), DAMAGES, ids=[words for _, words in DAMAGES])
def test_damage_is_named(tmp_path: Path, damage: Change, words: str) -> None:
    spec = copy.deepcopy(anchor(dtype="int8", layout="NHWC"))
    damage(spec)
    path = tmp_path / "net.host.json"
    path.write_text(json.dumps(spec))

    with pytest.raises(ExportError) as error:
        read_host_spec(path)

    assert f"\n  {words}" in str(error.value)
    assert str(error.value).startswith(f"{path}: no host can follow this description\n")
    assert str(error.value).endswith("\n  Export the detector anew.")


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.host.json"
    path.write_text("[]")

    with pytest.raises(ExportError, match="\n  it must be a table\n"):
        read_host_spec(path)


def test_all_damage_is_named_at_once(tmp_path: Path) -> None:
    spec: Any = copy.deepcopy(anchor())
    spec["input"]["height"] = "tall"
    del spec["names"]
    path = tmp_path / "net.host.json"
    path.write_text(json.dumps(spec))

    with pytest.raises(ExportError, match=r"(?s)'names' is missing.*'input.height' is \"tall\""):
        read_host_spec(path)


def test_the_python_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = anchor(dtype="int8", layout="NHWC")
    write_host_files(tmp_path, "yolov7-tiny", spec)
    section = PAGE.read_text(encoding="utf-8").split("\n## Host decoder\n")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    names: dict[str, Any] = {
        "picture": np.zeros((48, 64, 3), np.uint8),
        "run": lambda tensor: outputs(spec, random_maps(spec["decode"], int(tensor.shape == (1, 64, 96, 3)))),
    }

    exec(compile(code, PAGE.name, "exec"), names)  # noqa: S102 - our own document

    wanted_N4, scores_N, _ = host(spec).detect(outputs(spec, random_maps(spec["decode"], 1)), host(spec).fit(48, 64))
    assert 0 < len(names["boxes"]) < len(scores_N)
    np.testing.assert_array_equal(names["boxes"], wanted_N4[scores_N > np.float32(0.4)])
