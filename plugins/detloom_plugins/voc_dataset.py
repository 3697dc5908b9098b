"""Pascal VOC annotations: one XML file for each picture (Everingham et al. 2010, IJCV 88(2)).

    ImageSets/Main/{split}.txt, Annotations/{name}.xml, JPEGImages/{name}.jpg

Corners count pixels from 1 and belong to the box: ``x = xmin - 1``, ``width = xmax - xmin + 1``.
The ``<path>`` of an annotation belongs to the annotator's machine and is not followed.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from detloom.data.faults import RecordBuilder, as_number
from detloom.data.reading import SUFFIXES, picture_size
from detloom.data.records import Annotations, Fault
from detloom.errors import DataError, RecipeError, reason
from detloom.hookspecs import hookimpl
from detloom.interfaces import Dataset

__all__ = ["VocDataset"]

LISTS = Path("ImageSets") / "Main"
CORNERS = ("xmin", "ymin", "xmax", "ymax")


class VocDataset(Dataset):
    """Reads Pascal VOC's XML annotations.

    Args:
        path: The folder with ``Annotations``, ``ImageSets`` and ``JPEGImages``.
        names: The classes in order; when empty, those that any annotation of the folder has, sorted.
        ignore_difficult: Neither learn nor count objects marked difficult, as crowds.
    """

    def __init__(self, path: Path, *, names: tuple[str, ...] = (), ignore_difficult: bool = False) -> None:
        if len(set(names)) != len(names):
            raise RecipeError(f"names has a class twice: {', '.join(names)}")
        self.path = path
        self.names = names
        self.ignore_difficult = ignore_difficult

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Return whether a folder has ``Annotations`` and ``ImageSets/Main``."""
        # Listed, because some file systems do not tell Annotations from COCO's annotations.
        return path.is_dir() and "Annotations" in {each.name for each in path.iterdir()} and (path / LISTS).is_dir()

    def read(self, split: str) -> Annotations:
        """Return the images, boxes and faults of a split."""
        faults: list[Fault] = []
        chosen = self._listed(split, faults)
        trees: dict[str, Element] = {}
        for name in chosen:
            tree = self._tree(name, faults)
            if tree is not None:
                trees[name] = tree
        names = self.names or self._all_names(trees)
        pictures = {each.stem: each for each in self._pictures()}
        labels = {name: label for label, name in enumerate(names)}
        builders = []
        for position, (name, tree) in enumerate(trees.items(), start=1):
            builder = _builder(name, position, tree, pictures.get(name), faults)
            if builder is not None:
                self._add_objects(builder, tree, labels)
                builders.append(builder)
        return Annotations(
            names=tuple(names),
            images=tuple(builder.build() for builder in builders),
            faults=tuple(faults),
            category_ids=tuple(range(1, len(names) + 1)),
            source=self.path,
        )

    def _listed(self, split: str, faults: list[Fault]) -> list[str]:
        file = self.path / LISTS / f"{split}.txt"
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            present = ", ".join(sorted(each.stem for each in (self.path / LISTS).glob("*.txt"))) or "none"
            raise DataError(
                f"{file}: the list of the split '{split}' cannot be read. Splits there: {present}."
            ) from error
        names: list[str] = []
        seen: set[str] = set()
        for number, line in enumerate(lines, start=1):
            words = line.split()
            if not words:
                continue
            if words[0] in seen:
                faults.append(Fault(file.name, f"line {number}", f"{words[0]} is listed twice"))
            elif "/" in words[0] or "\\" in words[0] or "\0" in words[0]:
                faults.append(Fault(file.name, f"line {number}", f"{words[0]!r} is a path, not the name of a picture"))
            else:
                names.append(words[0])
            seen.add(words[0])
        return names

    def _tree(self, name: str, faults: list[Fault]) -> Element | None:
        file = self.path / "Annotations" / f"{name}.xml"
        try:
            return parse_xml(file.read_bytes())
        except OSError as error:
            faults.append(Fault(file.name, "", f"cannot be read ({reason(error)})"))
        except ValueError as error:
            faults.append(Fault(file.name, "", str(error)))
        return None

    def _all_names(self, trees: dict[str, Element]) -> Sequence[str]:
        """Return the classes of the whole folder, so that all splits agree on them."""
        names = {_text(each, "name") for tree in trees.values() for each in tree.iter("object")}
        for file in (self.path / "Annotations").glob("*.xml"):
            tree = None if file.stem in trees else self._tree(file.stem, [])
            if tree is not None:
                names |= {_text(each, "name") for each in tree.iter("object")}
        names.discard("")
        if not names:
            raise DataError(f"{self.path}: no annotation has an object with a name, so there are no classes.")
        return sorted(names)

    def _pictures(self) -> list[Path]:
        folder = self.path / "JPEGImages"
        if not folder.is_dir():
            raise DataError(f"{folder}: there is no such folder; VOC keeps its pictures there.")
        return sorted(each for each in folder.iterdir() if each.suffix.lower() in SUFFIXES)

    def _add_objects(self, builder: RecordBuilder, tree: Element, labels: dict[str, int]) -> None:
        for number, each in enumerate(tree.iter("object"), start=1):
            where = f"object {number}"
            name = _text(each, "name")
            corners = each.find("bndbox")
            if name not in labels:
                builder.faults.append(Fault(builder.file, where, f"there is no class {name!r}"))
            elif corners is None:
                builder.faults.append(Fault(builder.file, where, "has no bndbox"))
            else:
                xmin, ymin, xmax, ymax = (as_number(_text(corners, corner)) for corner in CORNERS)
                if xmax <= xmin or ymax <= ymin:
                    # Inclusive corners cannot say zero: a click without a drag is one pixel wide.
                    what = f"the box has no area: [{xmin:g}, {ymin:g}, {xmax:g}, {ymax:g}] (1-based corners)"
                    builder.faults.append(Fault(builder.file, where, what))
                else:
                    builder.add(
                        (xmin - 1, ymin - 1, xmax, ymax),
                        labels[name],
                        where,
                        is_crowd=self.ignore_difficult and _text(each, "difficult") == "1",
                        annotation_id=number,
                    )


def parse_xml(content: bytes) -> Element:
    """Return the root of a document without a document type.

    Raises:
        ValueError: It is no XML, or declares a document type, through which entities could name other
            files or fill the memory.
    """
    builder = TreeBuilder()
    parser = expat.ParserCreate()
    parser.buffer_text = True

    def refuse(*_: object) -> None:
        raise ValueError("declares a document type (DOCTYPE), which annotations do not need; remove it")

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(content, True)  # noqa: FBT003 - expat takes it by position only
    except (expat.ExpatError, LookupError) as error:
        raise ValueError(f"is no XML ({error})") from error
    return builder.close()


def _builder(
    name: str, position: int, tree: Element, picture: Path | None, faults: list[Fault]
) -> RecordBuilder | None:
    file = f"{name}.xml"
    if picture is None:
        faults.append(Fault(file, "", f"there is no picture JPEGImages/{name}.*"))
        return None
    size = tree.find("size")
    if size is None:
        try:
            height, width = picture_size(picture)
        except DataError as error:
            faults.append(Fault(str(picture), "", error.what.removeprefix(f"{picture}: ")))
            return None
        return RecordBuilder(picture, position, height, width, file, faults)
    sides = as_number(_text(size, "height")), as_number(_text(size, "width"))
    if not all(1 <= side < 2**31 and side == int(side) for side in sides):
        shown = f"{_text(size, 'width')!r} x {_text(size, 'height')!r}"
        faults.append(Fault(file, "size", f"width and height must be whole positive numbers, but are {shown}"))
        return None
    return RecordBuilder(picture, position, int(sides[0]), int(sides[1]), file, faults)


def _text(parent: Element, tag: str) -> str:
    return (parent.findtext(tag) or "").strip()


@hookimpl
def register_components(register: Callable[[str, type[Any]], None]) -> None:
    """Offer the reader."""
    register("voc", VocDataset)
