"""Bundled recipes, one TOML file each."""
