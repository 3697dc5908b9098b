"""What can be the user's mistake, as one tree of exceptions.

    DetloomError                 prints without a traceback, exit code 2
    ├── RecipeError              a recipe, a setting or an override
    ├── PluginError              a plugin that cannot be loaded or breaks its contract
    ├── DataError                images and annotations
    ├── ArtifactError            weights and runs on disk
    ├── TrainingError            a run that cannot go on (memory, NaN, a full disk)
    └── ExportError              a network that a target cannot take, or a compiler that fails

Every message says where, what is wrong, what would be accepted and what to do next.
Anything that is not a ``DetloomError`` is a bug and shows its traceback.
"""

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = [
    "ArtifactError",
    "DataError",
    "DetloomError",
    "ExportError",
    "PluginError",
    "RecipeError",
    "TrainingError",
    "plural",
    "reason",
    "suggest",
    "with_article",
]


class DetloomError(Exception):
    """A mistake that the user can mend; the message says how."""


class RecipeError(DetloomError):
    """A recipe, a setting or an override that cannot be used."""


class PluginError(DetloomError):
    """A plugin that cannot be loaded, clashes, or breaks its contract."""


class DataError(DetloomError):
    """Images or annotations that cannot be used.

    Args:
        what: Where, and what is wrong.
        advice: What to do next, where that is worth telling but once for many.

    Attributes:
        what: The message without the advice.
    """

    def __init__(self, what: str, advice: str = "") -> None:
        super().__init__(f"{what}. {advice}" if advice else what)
        self.what = what


class ArtifactError(DetloomError):
    """An artifact or a run directory that cannot be read or written."""


class TrainingError(DetloomError):
    """A run that cannot go on."""


class ExportError(DetloomError):
    """A network that a target cannot take, or a compiler that is missing or fails."""


def plural(noun: str) -> str:
    """Return ``"heads"`` or ``"searches"``; a noun that ends in ``s``, as ``"anchors"`` does, is one already."""
    if noun.endswith("s"):
        return noun
    return f"{noun}es" if noun.endswith("ch") else f"{noun}s"


def reason(error: Exception) -> str:
    """Return why a system or a library refused, in one line; of the system's errors without number and file."""
    if isinstance(error, UnicodeDecodeError):
        return "it is not text in UTF-8"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def with_article(noun: str) -> str:
    """Return ``"an assigner"`` or ``"a head"``, and a plural as it is."""
    if noun == plural(noun):
        return noun
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"


def suggest(wrong: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the nearest known name, else nothing."""
    nearest = get_close_matches(wrong, list(known), n=1, cutoff=0.6)
    return f" Did you mean '{nearest[0]}'?" if nearest else ""
