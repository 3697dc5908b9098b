"""HTML pages that need nothing else: a template with its data inside."""

import json
from collections.abc import Mapping
from importlib.resources.abc import Traversable
from typing import Any

from detloom.json_values import without_nan

__all__ = ["filled"]

# What a template has in the place of the data.
PLACE = "/* DATA */ null"


def filled(template: Traversable, data: Mapping[str, Any]) -> str:
    """Return the text of a page, whose script has the data as JSON; what is not finite is null there."""
    # A closing tag inside a name would end the script.
    text = json.dumps(without_nan(data)).replace("</", "<\\/")
    return template.read_text(encoding="utf-8").replace(PLACE, text)
