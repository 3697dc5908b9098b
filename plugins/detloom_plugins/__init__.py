"""Bundled components; each module registers its own through the plugin hook."""
