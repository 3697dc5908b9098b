"""Pictures for people: boxes with labels, several pictures in one, and their files.

A picture is RGB, ``uint8 [H, W, 3]``.
"""

import base64
import colorsys
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from detloom.data.reading import SUFFIXES, Picture, read_picture
from detloom.durable import write_whole
from detloom.errors import ArtifactError, DataError, reason
from detloom.structures import Detections

__all__ = [
    "colour",
    "detections_html",
    "draw",
    "font",
    "grid",
    "jpeg_url",
    "make_directory",
    "shortened",
    "text_on",
    "write_picture",
]

Colour = tuple[int, int, int]
Rectangle = tuple[float, float, float, float]

# Pixels about the text of a label.
PAD = 3

# Pixels of a line of a title.
LINE = 24

WHITE, BLACK, GREY = (255, 255, 255), (0, 0, 0), (114, 114, 114)

# Successive hues that lie far apart however many there are: steps of the golden section.
HUE_STEP = 0.618033988749895

HTML_SIDE = 640
HTML_ROWS = 20


def colour(index: int) -> Colour:
    """Return the colour of a class: clear, and unlike those of its neighbours."""
    red, green, blue = colorsys.hsv_to_rgb((0.02 + index * HUE_STEP) % 1, 0.85, (1.0, 0.8)[index % 2])
    # Bright yellows and greens are lost on pale pictures.
    dimmed = min(1.0, 0.6 / (0.299 * red + 0.587 * green + 0.114 * blue))
    return round(red * dimmed * 255), round(green * dimmed * 255), round(blue * dimmed * 255)


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return the font that pillow brings along."""
    return ImageFont.load_default(size)


def text_on(background: Colour) -> Colour:
    """Return black or white, whichever reads better."""
    red, green, blue = background
    return BLACK if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else WHITE


def draw(picture_HW3: Picture, detections: Detections, *, enlarge_to: int = 0, with_scores: bool = True) -> Picture:
    """Return a copy of a picture with boxes and labels on it.

    Args:
        picture_HW3: The picture that the boxes belong to.
        detections: Boxes in its pixels.
        enlarge_to: Enlarge a smaller picture until its longer side has about this many pixels, so that
            labels have room; the result is then larger than the picture.
        with_scores: Write scores beside names.
    """
    height, width = picture_HW3.shape[:2]
    factor = max(1, -(-enlarge_to // max(height, width)))
    image = Image.fromarray(np.ascontiguousarray(picture_HW3))
    if factor > 1:
        image = image.resize((width * factor, height * factor), Image.Resampling.BICUBIC)
    canvas = ImageDraw.Draw(image)
    side = max(image.size)
    line, letters = max(1, round(side / 400)), font(max(10, min(28, round(side / 50))))
    boxes = [tuple(edge * factor for edge in box) for box in detections.boxes_N4.tolist()]
    labels = detections.labels_N.tolist()
    # The best are drawn last, on top; their labels choose their places first.
    for box, label in reversed(list(zip(boxes, labels, strict=True))):
        canvas.rectangle(_inside(box, image.size), outline=colour(label), width=line)
    taken: list[Rectangle] = []
    for box, label, score in zip(boxes, labels, detections.scores_N.tolist(), strict=True):
        text = f"{detections.names[label]} {score:.2f}" if with_scores else detections.names[label]
        place = _place(canvas, text, box, image.size, letters, taken=taken)
        taken.append(place)
        canvas.rectangle(place, fill=colour(label))
        canvas.text((place[0] + PAD, place[1] + PAD), text, fill=text_on(colour(label)), font=letters, anchor="lt")
    return np.asarray(image, np.uint8)


def grid(
    pictures: Sequence[Picture],
    *,
    titles: Sequence[str] = (),
    columns: int | None = None,
    cell: tuple[int, int] = (360, 480),
    gap: int = 8,
) -> Picture:
    """Return several pictures side by side, each fitted into a cell of height and width.

    A title may have several lines; each is cut at its end where it is too long.
    """
    columns = columns or max(1, min(len(pictures), round(len(pictures) ** 0.5 + 0.25)))
    rows = max(1, -(-len(pictures) // columns))
    letters = font(15)
    above = LINE * max((title.count("\n") + 1 for title in titles), default=0)
    height, width = cell
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + above + gap) + gap), WHITE)
    canvas = ImageDraw.Draw(sheet)
    for index, picture in enumerate(pictures):
        left = gap + index % columns * (width + gap)
        top = gap + index // columns * (height + above + gap)
        if index < len(titles):
            for line, text in enumerate(titles[index].split("\n")):
                cut = shortened(text, letters, width, keep="start")
                canvas.text((left, top + 2 + line * LINE), cut, fill=BLACK, font=letters)
        ratio = min(height / picture.shape[0], width / picture.shape[1])
        size = (max(1, round(picture.shape[1] * ratio)), max(1, round(picture.shape[0] * ratio)))
        image = Image.fromarray(np.ascontiguousarray(picture)).resize(size, Image.Resampling.LANCZOS)
        sheet.paste(image, (left + (width - size[0]) // 2, top + above + (height - size[1]) // 2))
    return np.asarray(sheet, np.uint8)


def write_picture(path: Path, picture_HW3: Picture) -> None:
    """Write a picture, whole or not at all; the suffix says the format.

    Raises:
        ArtifactError: The file cannot be written.
    """
    formats = Image.registered_extensions()
    if path.suffix.lower() not in formats:
        raise ArtifactError(f"{path}: '{path.suffix}' is no picture format that can be written; use .png or .jpg")
    image = Image.fromarray(np.ascontiguousarray(picture_HW3))
    write_whole(path, lambda beside: image.save(beside, formats[path.suffix.lower()], quality=92))


def jpeg_url(picture_HW3: Picture, *, quality: int, longest_side: int | None = None) -> str:
    """Return a picture as a ``data:`` URL, for pages that need nothing else; a larger one is made smaller."""
    image = Image.fromarray(np.ascontiguousarray(picture_HW3))
    if longest_side is not None:
        image.thumbnail((longest_side, longest_side))
    content = io.BytesIO()
    image.save(content, "JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()


def make_directory(directory: Path) -> None:
    """Make a directory, and those above it.

    Raises:
        ArtifactError: It cannot be made.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArtifactError(
            f"{directory}: this directory cannot be made ({reason(error)}). Choose another place."
        ) from error


def detections_html(detections: Detections) -> str:
    """Return a table of the boxes and, where the picture is a file, the picture with them."""
    rows = "".join(
        f"<tr><td>{html.escape(detections.names[label])}</td><td>{score:.3f}</td>"
        + "".join(f"<td>{edge:.1f}</td>" for edge in box)
        + "</tr>"
        for label, score, box in zip(
            detections.labels_N[:HTML_ROWS].tolist(),
            detections.scores_N[:HTML_ROWS].tolist(),
            detections.boxes_N4[:HTML_ROWS].tolist(),
            strict=True,
        )
    )
    height, width = detections.image_size
    heading = f"{len(detections)} detections in {html.escape(detections.source or 'a picture')} ({width} x {height})"
    left_out = len(detections) - HTML_ROWS
    return (
        f"<div><p>{heading}</p>{_html_picture(detections)}"
        "<table><tr><th>class</th><th>score</th><th>x1</th><th>y1</th><th>x2</th><th>y2</th></tr>"
        f"{rows}</table>{f'<p>and {left_out} more</p>' if left_out > 0 else ''}</div>"
    )


def _html_picture(detections: Detections) -> str:
    path = Path(detections.source or "")
    if path.suffix.lower() not in SUFFIXES or not path.is_file():
        return ""
    try:
        picture = read_picture(path, size=detections.image_size)
    except DataError:
        # The file has changed or gone since: the table remains right.
        return ""
    drawn_HW3 = draw(picture, detections, enlarge_to=HTML_SIDE)
    source = jpeg_url(drawn_HW3, quality=88, longest_side=2 * HTML_SIDE)
    return f'<img style="max-width:{HTML_SIDE}px" src="{source}">'


def _place(
    canvas: ImageDraw.ImageDraw,
    text: str,
    box: Sequence[float],
    size: tuple[int, int],
    letters: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    *,
    taken: Sequence[Rectangle],
) -> Rectangle:
    """Return where a label goes: the first corner of the box where it covers least of other labels."""
    left, top, right, bottom = canvas.textbbox((0, 0), text, font=letters, anchor="lt")
    width, height = right - left + 2 * PAD, bottom - top + 2 * PAD
    x1, y1, x2, y2 = box
    corners = ((x1, y1 - height), (x1, y1), (x1, y2), (x1, y2 - height), (x2 - width, y1 - height), (x2 - width, y2))
    places: list[Rectangle] = []
    for x, y in corners:
        inside_x, inside_y = min(max(x, 0), max(size[0] - width, 0)), min(max(y, 0), max(size[1] - height, 0))
        places.append((inside_x, inside_y, inside_x + width, inside_y + height))
    return min(places, key=lambda place: sum(_common(place, other) for other in taken))


def _common(a: Rectangle, b: Rectangle) -> float:
    """Return the area that two boxes share."""
    return max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)


def _inside(box: Sequence[float], size: tuple[int, int]) -> Rectangle:
    """Return the box on the pixels of a picture; one without extent is a point."""
    x1, y1 = min(max(box[0], 0), size[0] - 1), min(max(box[1], 0), size[1] - 1)
    return x1, y1, max(min(box[2], size[0]) - 1, x1), max(min(box[3], size[1]) - 1, y1)


def shortened(
    text: str,
    letters: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    width: int,
    *,
    keep: Literal["start", "end"] = "end",
) -> str:
    """Return a text cut until it fits into a width in pixels; a path says most at its end, a heading at its start."""
    if letters.getlength(text) <= width:
        return text
    while text and letters.getlength(f"...{text}") > width:
        text = text[1:] if keep == "end" else text[:-1]
    return f"...{text}" if keep == "end" else f"{text}..."
