"""COCO JSON annotations (the format of instance annotations; Lin et al. 2014, arXiv:1405.0312).

A folder with ``annotations/`` and the pictures, or one JSON file:

    annotations/{split}.json or annotations/instances_{split}*.json
    images/, images/{split}/, {split}/ or {split}2017/, or beside the annotations
"""

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from detloom.data.faults import RecordBuilder, as_number
from detloom.data.records import Annotations, Fault
from detloom.errors import DataError, reason
from detloom.hookspecs import hookimpl
from detloom.interfaces import Dataset

__all__ = ["CocoDataset"]


class CocoDataset(Dataset):
    """Reads COCO's instance annotations.

    Class indices follow the category ids. Crowds are kept as crowds.

    Args:
        path: The data set's folder, or one JSON file, which is then every split.
        images: Folder of the pictures, absolute or relative to the data set's; looked for when empty.
    """

    def __init__(self, path: Path, *, images: str = "") -> None:
        self.path = path
        self.images = images

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Return whether this is a JSON file, or a folder with ``annotations/*.json``."""
        if path.is_file():
            return path.suffix.lower() == ".json"
        return any((path / "annotations").glob("*.json"))

    def read(self, split: str) -> Annotations:
        """Return the images, boxes and faults of a split."""
        file = self._file(split)
        content = _load(file)
        faults: list[Fault] = []
        reader = _Reader(file.name, faults)
        categories = reader.categories(content["categories"])
        builders = reader.images(content["images"], self._folder(split, file, content["images"]))
        reader.boxes(content["annotations"], builders, categories)
        ids = sorted(categories)
        return Annotations(
            names=tuple(categories[each] for each in ids),
            images=tuple(builder.build() for builder in builders.values()),
            faults=tuple(faults),
            category_ids=tuple(ids),
            source=file,
        )

    def _file(self, split: str) -> Path:
        if self.path.is_file():
            return self.path
        folder = self.path / "annotations"
        exact = [folder / f"{split}.json", folder / f"instances_{split}.json"]
        for file in exact:
            if file.is_file():
                return file
        found = sorted(folder.glob(f"instances_{split}*.json"))
        if len(found) == 1:
            return found[0]
        present = ", ".join(sorted(file.name for file in folder.glob("*.json"))) or "none"
        problem = "several files are" if found else "no file is"
        raise DataError(
            f"{folder}: {problem} the split '{split}'; it would be {split}.json or instances_{split}*.json. "
            f"There: {present}. Name another split in [data], or give the JSON file itself."
        )

    def _folder(self, split: str, file: Path, images: list[Any]) -> Path:
        root = self.path if self.path.is_dir() else file.parent
        if self.images:
            return root / self.images
        names = (f"images/{split}", f"images/{split}2017", "images", split, f"{split}2017", ".")
        roots = [root] if self.path.is_dir() else [root, root.parent]
        candidates = [base / name for base in roots for name in names]
        name = next((each["file_name"] for each in images if _is_named(each)), None)
        if name is None:
            return candidates[0]
        for folder in candidates:
            if (folder / name).is_file():
                return folder
        # A missing picture must not hide where the others are.
        existing = [folder for folder in candidates if folder.is_dir()]
        for folder in existing:
            if any((folder / each["file_name"]).is_file() for each in images if _is_named(each)):
                return folder
        raise DataError(
            f"{file}: none of its {len(images)} pictures was found, such as {name}. "
            f"Looked in {', '.join(str(folder) for folder in existing)}. Set images in [dataset] to their folder."
        )


class _Reader:
    """Turns the tables of one file into builders, and lists what is wrong."""

    def __init__(self, file: str, faults: list[Fault]) -> None:
        self.file = file
        self.faults = faults
        # Images without a size: their boxes have no fault of their own.
        self.sizeless: set[int] = set()

    def fault(self, where: str, what: str) -> None:
        self.faults.append(Fault(self.file, where, what))

    def categories(self, rows: Iterable[Any]) -> dict[int, str]:
        """Return the class name of each category id."""
        categories: dict[int, str] = {}
        for row in rows:
            if not (isinstance(row, dict) and _is_id(row.get("id")) and isinstance(row.get("name"), str)):
                self.fault("categories", f"a category needs an integer id and a name, but is {_shown(row)}")
            elif row["id"] in categories:
                self.fault(
                    f"category {row['id']}", f"the id is given twice, to {categories[row['id']]} and {row['name']}"
                )
            else:
                categories[row["id"]] = row["name"]
        if not categories:
            raise DataError(f"{self.file}: there is no category with an id and a name, so there are no classes.")
        return categories

    def images(self, rows: Iterable[Any], folder: Path) -> dict[int, RecordBuilder]:
        """Return a builder for each image id."""
        builders: dict[int, RecordBuilder] = {}
        paths: set[Path] = set()
        for row in rows:
            if not (isinstance(row, dict) and _is_id(row.get("id")) and _is_named(row)):
                self.fault("images", f"an image needs an integer id and a file_name, but is {_shown(row)}")
                continue
            where = f"image {row['id']}"
            path = folder / row["file_name"]
            height, width = as_number(row.get("height")), as_number(row.get("width"))
            if row["id"] in builders:
                self.fault(where, f"the id is given twice, to {builders[row['id']].path.name} and {path.name}")
            elif path in paths:
                self.fault(where, f"{row['file_name']} is listed twice")
            elif not (_is_side(height) and _is_side(width)):
                size = f"{_shown(row.get('width'))} x {_shown(row.get('height'))}"
                self.fault(where, f"width and height must be whole positive numbers, but are {size}")
                self.sizeless.add(row["id"])
            else:
                paths.add(path)
                builders[row["id"]] = RecordBuilder(path, row["id"], int(height), int(width), self.file, self.faults)
        return builders

    def boxes(self, rows: Iterable[Any], builders: dict[int, RecordBuilder], categories: dict[int, str]) -> None:
        """Give each box to its picture."""
        labels = {category: label for label, category in enumerate(sorted(categories))}
        seen: set[int] = set()
        for row in rows:
            if not (isinstance(row, dict) and _is_id(row.get("id"))):
                self.fault("annotations", f"an annotation needs an integer id, but is {_shown(row)}")
                continue
            where = f"annotation {row['id']}"
            image, category, box = row.get("image_id"), row.get("category_id"), row.get("bbox")
            if row["id"] in seen:
                self.fault(where, "the id is given twice")
            elif not _is_id(image) or image not in builders:
                if not (_is_id(image) and image in self.sizeless):
                    self.fault(where, f"there is no usable image {_shown(image)}")
            elif not _is_id(category) or category not in labels:
                self.fault(where, f"there is no category {_shown(category)}")
            elif not isinstance(box, list) or len(box) != 4:
                self.fault(where, f"bbox must be [x, y, width, height], but is {_shown(box)}")
            else:
                x, y, width, height = (as_number(value) for value in box)
                builders[image].add(
                    (x, y, x + width, y + height),
                    labels[category],
                    where,
                    is_crowd=row.get("iscrowd") in (1, True),
                    area=as_number(row["area"]) if "area" in row else None,
                    annotation_id=row["id"],
                )
            seen.add(row["id"])


def _load(file: Path) -> dict[str, list[Any]]:
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({reason(error)}).") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: is no JSON ({error}). Was it copied completely?") from error
    if not isinstance(content, dict):
        raise DataError(f"{file}: holds {_shown(content)}, but COCO annotations are an object with images.")
    missing = [key for key in ("images", "annotations", "categories") if not isinstance(content.get(key), list)]
    if missing:
        raise DataError(
            f"{file}: has no list called {' or '.join(missing)}. "
            "COCO instance annotations have images, annotations and categories."
        )
    return content


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _is_named(row: object) -> bool:
    if not isinstance(row, dict):
        return False
    name = row.get("file_name")
    return isinstance(name, str) and bool(name) and "\0" not in name


def _is_side(value: float) -> bool:
    return math.isfinite(value) and 1 <= value < 2**31 and value == int(value)


def _shown(value: object) -> str:
    text = repr(value)
    longest = 80
    return text if len(text) <= longest else text[: longest - 3] + "..."


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the reader."""
    register("coco", CocoDataset)
