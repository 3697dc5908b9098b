"""YOLO text annotations: a YAML file that names the classes, and one text file for each picture.

A row is ``class cx cy w h`` or a polygon ``class x1 y1 x2 y2 ...``, in fractions of the picture; a
polygon becomes the box around it. The text file of ``.../images/a.jpg`` is ``.../labels/a.txt``.
"""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]  # its stubs are a package of their own

from detloom.data.faults import RecordBuilder, as_number
from detloom.data.reading import SUFFIXES, picture_size
from detloom.data.records import Annotations, Fault
from detloom.errors import DataError, reason
from detloom.hookspecs import hookimpl
from detloom.interfaces import Dataset
from detloom.wording import shown

__all__ = ["YoloDataset"]

YAML_SUFFIXES = (".yaml", ".yml")
BOX_COLUMNS = 5
# Reading headers waits for the disk.
THREADS = 8
LEAST_POLYGON_COLUMNS = 7


class YoloDataset(Dataset):
    """Reads YOLO's text annotations.

    Args:
        path: The YAML file, or a folder with ``data.yaml`` or one YAML file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Return whether this is a YAML file, or a folder with ``data.yaml`` or one YAML file."""
        return _yaml_of(path) is not None

    def read(self, split: str) -> Annotations:
        """Return the images, boxes and faults of a split."""
        file = _yaml_of(self.path)
        if file is None:
            raise DataError(f"{self.path}: has no data.yaml, which names the classes and where the pictures are.")
        content = _load(file)
        names = _names(file, content)
        pictures = _pictures(file, content, split)
        if not any(label_file(picture).is_file() for picture in pictures):
            raise DataError(
                f"{file} [{split}]: none of {len(pictures)} pictures has a text file of boxes. "
                f"{pictures[0]} would have {label_file(pictures[0])}."
            )
        faults: list[Fault] = []
        builders = []
        with ThreadPoolExecutor(THREADS) as pool:
            sizes = list(pool.map(_size_or_fault, pictures))
        for position, (picture, size) in enumerate(zip(pictures, sizes, strict=True), start=1):
            builder = _builder(picture, size, position, faults)
            if builder is not None:
                _add_rows(builder, len(names), faults)
                builders.append(builder)
        return Annotations(
            names=names,
            images=tuple(builder.build() for builder in builders),
            faults=tuple(faults),
            category_ids=tuple(range(len(names))),
            source=file,
        )


def label_file(picture: Path) -> Path:
    """Return the text file of a picture: the last folder ``images`` of its path becomes ``labels``."""
    parts = list(picture.parent.parts)
    for index in reversed(range(len(parts))):
        if parts[index] == "images":
            parts[index] = "labels"
            break
    return Path(*parts) / f"{picture.stem}.txt"


def _yaml_of(path: Path) -> Path | None:
    if path.is_file():
        return path if path.suffix.lower() in YAML_SUFFIXES else None
    if not path.is_dir():
        return None
    for suffix in YAML_SUFFIXES:
        if (path / f"data{suffix}").is_file():
            return path / f"data{suffix}"
    found = [file for file in path.iterdir() if file.suffix.lower() in YAML_SUFFIXES]
    return found[0] if len(found) == 1 else None


def _load(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(file.read_bytes())
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({reason(error)}).") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: is no YAML: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{file}: must be a table with names, train and val.")
    return content


def _names(file: Path, content: dict[str, Any]) -> tuple[str, ...]:
    names = content.get("names")
    if names is None:
        raise DataError(f"{file}: 'names' is missing; list the classes, such as names: [cat, dog].")
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise DataError(f"{file}: the keys of names must be 0, 1, ... without gaps, but are {list(names)[:20]}.")
        names = [names[index] for index in range(len(names))]
    if not isinstance(names, list) or not names:
        raise DataError(f"{file}: 'names' is {shown(names)}: it must be an array of text, such as names: [cat, dog].")
    count = content.get("nc", len(names))
    if count != len(names):
        raise DataError(f"{file}: 'nc' is {shown(count)}, but names has {len(names)} classes. Correct one of them.")
    return tuple(str(name) for name in names)


def _pictures(file: Path, content: dict[str, Any], split: str) -> list[Path]:
    places = content.get(split)
    if isinstance(places, str):
        places = [places]
    if not isinstance(places, list) or not places or not all(isinstance(place, str) for place in places):
        known = ", ".join(key for key in ("train", "val", "test") if key in content) or "none"
        found = "missing" if content.get(split) is None else shown(content[split])
        raise DataError(
            f"{file}: '{split}' is {found}: it must say where the pictures of the "
            f"split are, as {split}: images/{split}. Splits there: {known}."
        )
    base = file.parent / str(content.get("path") or ".")
    pictures = sorted({picture for place in places for picture in _listed(file, base, place)})
    if not pictures:
        raise DataError(f"{file} [{split}]: no pictures in {', '.join(places)}. Known: {', '.join(sorted(SUFFIXES))}.")
    return pictures


def _listed(file: Path, base: Path, place: str) -> Iterator[Path]:
    found = base / place
    # Exports for download often write ../train/images for what lies beside the YAML file.
    if not found.exists() and place.startswith("../"):
        found = base / place.removeprefix("../")
    if found.is_dir():
        yield from (each for each in found.rglob("*") if each.suffix.lower() in SUFFIXES)
    elif found.is_file() and found.suffix == ".txt":
        try:
            lines = found.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{found}: the list of pictures cannot be read ({reason(error)}).") from error
        # A leading ./ means the folder of the list.
        yield from (
            found.parent / line if line.startswith("./") else base / line for line in map(str.strip, lines) if line
        )
    else:
        raise DataError(f"{file}: {found} is neither a folder nor a list (.txt) of pictures. Correct the path in it.")


def _size_or_fault(picture: Path) -> tuple[int, int] | Fault:
    # Fractions become pixels, so that the size is needed here.
    try:
        return picture_size(picture)
    except DataError as error:
        return Fault(str(picture), "", error.what.removeprefix(f"{picture}: "))


def _builder(picture: Path, size: tuple[int, int] | Fault, position: int, faults: list[Fault]) -> RecordBuilder | None:
    if isinstance(size, Fault):
        faults.append(size)
        return None
    return RecordBuilder(picture, position, *size, str(label_file(picture)), faults)


def _add_rows(builder: RecordBuilder, num_classes: int, faults: list[Fault]) -> None:
    file = Path(builder.file)
    if not file.is_file():
        return
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        faults.append(Fault(builder.file, "", f"cannot be read ({reason(error)})"))
        return
    for number, line in enumerate(lines, start=1):
        if line.strip():
            problem = _add_row(builder, line.split(), num_classes, f"line {number}")
            if problem:
                faults.append(Fault(builder.file, f"line {number}", problem))


def _add_row(builder: RecordBuilder, words: list[str], num_classes: int, where: str) -> str | None:
    """Add a row; return what is wrong with it as a row."""
    is_polygon = len(words) >= LEAST_POLYGON_COLUMNS and len(words) % 2 == 1
    if len(words) != BOX_COLUMNS and not is_polygon:
        return (
            f"has {len(words)} columns; a box has 5 (class cx cy w h), a polygon an odd number from 7 (class x1 y1 ...)"
        )
    label, *values = (as_number(word) for word in words)
    if not (math.isfinite(label) and label == int(label) and 0 <= label < num_classes):
        return f"there is no class {words[0]}; classes are 0 to {num_classes - 1}"
    if not all(math.isfinite(value) for value in values):
        return f"has a coordinate that is no finite number: {' '.join(words)}"
    if is_polygon:
        x, y = values[0::2], values[1::2]
        box = (min(x), min(y), max(x), max(y))
    else:
        cx, cy, w, h = values
        box = (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
    width, height = builder.width, builder.height
    builder.add((box[0] * width, box[1] * height, box[2] * width, box[3] * height), int(label), where)
    return None


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the reader."""
    register("yolo", YoloDataset)
