"""Which format reads a path, and what is held out."""

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from detloom.data.records import Annotations, Fault
from detloom.data.settings import DataSettings, part_complaint
from detloom.data.splits import hold_out, open_dataset, open_split, open_splits, take_part
from detloom.errors import DataError, RecipeError
from detloom.interfaces import Dataset
from detloom.workshop import Workshop


class Painted(Dataset):
    """Reads nothing: returns what the test put there."""

    content: ClassVar[dict[str, Annotations]] = {}

    def __init__(self, path: Path, *, wanted: str = "") -> None:
        self.path = path
        self.wanted = wanted

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return path.is_dir()

    def read(self, split: str) -> Annotations:
        return self.content[split]


class Other(Painted):
    """Recognises files alone."""

    @classmethod
    def recognises(cls, path: Path) -> bool:
        return path.is_file()


def workshop_of(**formats: type[Dataset]) -> Workshop:
    shop = Workshop(rows=(), installed=(), disabled=())
    for name, cls in formats.items():
        shop.offer(name, cls)
    return shop


SHOP = workshop_of(painted=Painted, other=Other)


@pytest.fixture(autouse=True)
def content(painted: Annotations) -> None:
    Painted.content = {"train": painted, "val": replace(painted, images=painted.images[:2])}


def test_the_format_that_recognises_the_path_reads_it(tmp_path: Path) -> None:
    assert isinstance(open_dataset(tmp_path, None, shop=SHOP), Painted)
    assert len(open_split(tmp_path, "val", None, shop=SHOP).images) == 2


def test_a_recipe_may_name_the_format_and_its_settings(tmp_path: Path) -> None:
    dataset = open_dataset(tmp_path, {"use": "other", "wanted": "x"}, shop=SHOP)

    assert isinstance(dataset, Other)
    assert dataset.wanted == "x"


def test_settings_without_a_name_go_to_the_format_found(tmp_path: Path) -> None:
    dataset = open_dataset(tmp_path, {"wanted": "x"}, shop=SHOP)

    assert isinstance(dataset, Painted)
    assert dataset.wanted == "x"


def test_a_wrong_name_gets_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no dataset is called 'paintd'\. Did you mean 'painted'\?"):
        open_dataset(tmp_path, {"use": "paintd"}, shop=SHOP)


def test_a_wrong_setting_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no setting is called 'want'"):
        open_dataset(tmp_path, {"use": "painted", "want": "x"}, shop=SHOP)


def test_a_missing_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: there is no such file or folder"):
        open_dataset(tmp_path / "nowhere", None, shop=SHOP)


def test_what_nothing_recognises_says_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "holiday.mp4").touch()

    with pytest.raises(DataError, match=r"no dataset format recognises this \(holiday\.mp4\).*other"):
        open_dataset(tmp_path, None, shop=workshop_of(other=Other))


def test_part_of_a_data_set_is_told_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "birds" / "images" / "train").mkdir(parents=True)
    monkeypatch.setattr(Painted, "recognises", classmethod(lambda _cls, path: path.name == "birds"))

    with pytest.raises(DataError, match=r"train: this is a part of a data set.*Did you mean \S+birds\?"):
        open_dataset(tmp_path / "birds" / "images" / "train", shop=workshop_of(painted=Painted))


def test_artifact_is_told_from_a_data_set(tmp_path: Path) -> None:
    (tmp_path / "best.safetensors").touch()

    with pytest.raises(DataError, match=r"best\.safetensors: this is an artifact, which holds no pictures"):
        open_dataset(tmp_path / "best.safetensors", shop=workshop_of(painted=Painted))


def test_what_several_recognise_asks_for_a_choice(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="looks like one and like two"):
        open_dataset(tmp_path, None, shop=workshop_of(one=Painted, two=Painted))


def test_both_splits_are_opened(tmp_path: Path) -> None:
    train, val = open_splits(tmp_path, DataSettings(), None, shop=SHOP)

    assert (len(train.images), len(val.images)) == (6, 2)


def test_a_holdout_takes_the_place_of_the_val_split(tmp_path: Path) -> None:
    train, val = open_splits(tmp_path, DataSettings(holdout=0.34, val="absent"), None, shop=SHOP)

    assert (len(train.images), len(val.images)) == (4, 2)
    assert not {record.image_id for record in train.images} & {record.image_id for record in val.images}


def test_splits_with_other_classes_are_refused(tmp_path: Path, painted: Annotations) -> None:
    Painted.content["val"] = replace(painted, names=("a", "b", "c", "d", "e", "z"))

    with pytest.raises(DataError, match="only one of them has f, z"):
        open_splits(tmp_path, DataSettings(), None, shop=SHOP)


def test_a_missing_val_split_names_the_way_out_and_the_faults_of_train(tmp_path: Path, painted: Annotations) -> None:
    class WithoutVal(Painted):
        def read(self, split: str) -> Annotations:
            if split == "val":
                raise DataError(f"{self.path}: no file is the split 'val'.")
            return super().read(split)

    Painted.content["train"] = replace(painted, faults=(Fault("train.json", "annotation 3", "the box has no area"),))

    with pytest.raises(DataError) as caught:
        open_splits(tmp_path, DataSettings(), None, shop=workshop_of(painted=WithoutVal))

    message = str(caught.value)
    assert "no file is the split 'val'." in message
    assert "--set data.holdout=0.2" in message
    assert "1 fault in the data:\n  train.json, annotation 3: the box has no area" in message


def test_splits_with_other_classes_come_with_the_faults_of_both(tmp_path: Path, painted: Annotations) -> None:
    Painted.content["train"] = replace(painted, faults=(Fault("train.json", "", "no picture"),))
    Painted.content["val"] = replace(painted, names=("z",), faults=(Fault("val.json", "", "no area"),))

    with pytest.raises(DataError, match=r"2 faults in the data:\n  train\.json: no picture\n  val\.json: no area"):
        open_splits(tmp_path, DataSettings(), None, shop=SHOP)


def test_a_holdout_depends_on_the_seed_alone(painted: Annotations) -> None:
    held = [[record.image_id for record in hold_out(painted, 0.5, seed)[1].images] for seed in (0, 0, 1, 2, 3)]

    assert held[0] == held[1]
    assert any(each != held[0] for each in held[2:])


@pytest.mark.parametrize("fraction", [0.01, 0.99])
def test_a_holdout_leaves_something_on_both_sides(painted: Annotations, fraction: float) -> None:
    with pytest.raises(DataError, match="both parts need at least one"):
        hold_out(painted, fraction, 0)


@pytest.mark.parametrize(("fraction", "sizes"), [(1 / 3, [2, 2, 2]), (0.25, [2, 1, 1, 2]), (0.4, [2, 3])])
def test_parts_have_nothing_in_common_and_keep_the_order(
    painted: Annotations, fraction: float, sizes: list[int]
) -> None:
    parts = [
        [record.image_id for record in take_part(painted, DataSettings(fraction=fraction, part=part)).images]
        for part in range(len(sizes))
    ]

    assert [len(part) for part in parts] == sizes
    assert len({image for part in parts for image in part}) == sum(sizes)
    assert all(part == sorted(part) for part in parts)


def test_first_part_of_a_fraction_lies_within_that_of_a_larger(painted: Annotations) -> None:
    quarter, half, whole = (
        {record.image_id for record in take_part(painted, DataSettings(fraction=fraction)).images}
        for fraction in (0.25, 0.5, 1.0)
    )

    assert quarter < half < whole


def test_division_depends_on_its_own_seed_alone(tmp_path: Path) -> None:
    def learned(part_seed: int, seed: int) -> list[int]:
        data = DataSettings(fraction=0.5, part_seed=part_seed)
        return [record.image_id for record in open_splits(tmp_path, data, None, seed=seed, shop=SHOP)[0].images]

    assert learned(0, 0) == learned(0, 1)
    assert any(learned(other, 0) != learned(0, 0) for other in (1, 2, 3))


def test_a_part_is_of_what_the_holdout_left_and_all_that_is_held_out_is_measured_on(tmp_path: Path) -> None:
    halves = [
        open_splits(tmp_path, DataSettings(holdout=1 / 3, fraction=0.5, part=part), None, shop=SHOP) for part in (0, 1)
    ]

    learned = [{record.image_id for record in train.images} for train, _ in halves]
    measured = [{record.image_id for record in val.images} for _, val in halves]
    assert [len(each) for each in learned] == [2, 2]
    assert measured[0] == measured[1]
    assert len(learned[0] | learned[1] | measured[0]) == 6


def test_a_part_that_is_not_there_is_refused_with_the_fraction_that_has_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"fraction = 0\.4 there are the parts 0 to 1; for 6 equal .* = 0\.166666 or"):
        open_splits(tmp_path, DataSettings(fraction=0.4, part=5), None, shop=SHOP)
    assert part_complaint(DataSettings(fraction=0.166666, part=5)) is None


def test_a_part_without_pictures_is_refused(painted: Annotations) -> None:
    with pytest.raises(DataError, match=r"part 0 of 0\.05 of 6 pictures has none; raise fraction"):
        take_part(painted, DataSettings(fraction=0.05))


def test_progress_of_both_splits_is_told(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []

    open_splits(tmp_path, DataSettings(), None, shop=SHOP, progress=lambda done, total: told.append((done, total)))

    assert told == [*((done, 6) for done in range(1, 7)), (1, 2), (2, 2)]


@pytest.mark.parametrize("wrong", [3, None, ["here"]])
def test_what_is_no_path_is_refused(wrong: Any) -> None:
    with pytest.raises(DataError, match=r"^data: .* is no path; give the folder or file of a data set"):
        open_dataset(wrong, None, shop=SHOP)
