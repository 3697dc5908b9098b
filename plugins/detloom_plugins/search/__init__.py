"""Strategies of architecture search: which point of a space is tried next."""
