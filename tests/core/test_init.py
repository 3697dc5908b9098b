"""The public face."""

import detloom


def test_public_names_are_sorted_and_there() -> None:
    assert detloom.__all__ == sorted(detloom.__all__)
    assert all(hasattr(detloom, name) for name in detloom.__all__)


def test_listing_shows_public_names_alone() -> None:
    assert [name for name in dir(detloom) if not name.startswith("_")] == detloom.__all__
