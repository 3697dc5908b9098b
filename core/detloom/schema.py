"""The JSON Schema of recipes (draft 2020-12), made from the components' own signatures."""

from typing import Any

from detloom.kinds import Kind
from detloom.recipe import ASSEMBLER_SETTINGS, OBSERVERS, PASSES, PLAIN_SECTIONS, PLUGINS, SINGLE_KINDS, SUMMARY, USE
from detloom.settings import settings_model
from detloom.workshop import Workshop, workshop

__all__ = ["recipe_schema"]


def recipe_schema(shop: Workshop | None = None) -> dict[str, Any]:
    """Return the schema of a recipe file, with every component that is installed."""
    shop = shop or workshop()
    shop.load_third_parties()
    definitions: dict[str, Any] = {}
    properties: dict[str, Any] = {
        "extends": {"type": "string", "description": "A bundled recipe, or a path relative to this file."},
        PLUGINS: {
            "type": "array",
            "items": {"type": "string"},
            "description": "Files of plugins, relative to this file; their code is run.",
        },
        SUMMARY: {"type": "string", "description": "What the recipe is for."},
    }
    for kind in SINGLE_KINDS:
        # A recipe that extends another may set single values without naming the component again.
        properties[kind] = {
            "type": "object",
            "properties": {USE: {"enum": list(shop.names(kind))}},
            "allOf": [_when_used(shop, kind, name, definitions) for name in shop.names(kind)],
        }
    properties[Kind.REPARAM] = {
        "type": "object",
        "properties": {
            PASSES: {
                "type": "array",
                "items": {"anyOf": [{"enum": list(shop.names(Kind.REPARAM))}, {"type": "object"}]},
            }
        },
        "additionalProperties": False,
    }
    properties[OBSERVERS] = {
        "type": "object",
        "properties": {name: _settings(shop, Kind.OBSERVER, name, definitions) for name in shop.names(Kind.OBSERVER)},
        "additionalProperties": False,
    }
    for section, model in PLAIN_SECTIONS.items():
        properties[section] = _moved(model.model_json_schema(ref_template="#/$defs/{model}"), definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "detloom recipe",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "$defs": definitions,
    }


def _when_used(shop: Workshop, kind: Kind, name: str, definitions: dict[str, Any]) -> dict[str, Any]:
    then = _settings(shop, kind, name, definitions)
    extra = {key: {"type": "integer", "minimum": 1} for key in ASSEMBLER_SETTINGS.get(kind, {})}
    then["properties"] = {USE: {"const": name}, **extra, **then.get("properties", {})}
    return {"if": {"properties": {USE: {"const": name}}, "required": [USE]}, "then": then}


def _settings(shop: Workshop, kind: Kind, name: str, definitions: dict[str, Any]) -> dict[str, Any]:
    model = settings_model(shop.component(kind, name))
    return _moved(model.model_json_schema(ref_template="#/$defs/{model}"), definitions)


def _moved(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    definitions.update(schema.pop("$defs", {}))
    schema.pop("title", None)
    # A recipe may take required settings from the recipe that it extends.
    schema.pop("required", None)
    return schema
