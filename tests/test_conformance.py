"""Every component of the catalogue passes the kit that its readers' plugins are held to."""

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from detloom.catalogue import bundled_rows
from detloom.kinds import Kind
from detloom.testing import CHECKS, Check, checks_of, parametrize_with_checks
from detloom.workshop import workshop
from detloom_plugins.anchor_ratio import AnchorRatioAssigner
from detloom_plugins.atss import AtssAssigner
from detloom_plugins.dynamic_k import Yolov7Assigner
from detloom_plugins.hungarian import HungarianAssigner
from detloom_plugins.max_iou import MaxIouAssigner

# Settings of components that need some, and of those that are worth a run beside the defaults.
SETTINGS: Mapping[tuple[str, str], list[dict[str, Any]]] = {
    ("assigner", "anchor-ratio"): [{}, {"soft_labels": True}],
    ("assigner", "atss"): [{}, {"soft_labels": True}],
    ("assigner", "coarse-to-fine"): [
        {"inner": Yolov7Assigner(), "bound": "distance"},
        {"inner": AtssAssigner(), "coarse": AnchorRatioAssigner()},
    ],
    ("assigner", "hungarian"): [{}, {"soft_labels": True}, {"inside": True}],
    ("assigner", "independent"): [{"inner": HungarianAssigner(), "auxiliary": AtssAssigner()}],
    ("assigner", "lead-guided"): [{"inner": MaxIouAssigner(soft_labels=True)}],
    ("assigner", "max-iou"): [{}, {"soft_labels": True, "keep_best": False}],
    ("assigner", "paa"): [{}, {"soft_labels": True}],
    ("criterion", "yolov7"): [{}, {"focal_gamma": 1.5, "label_smoothing": 0.1}],
    ("criterion", "yolox"): [{}, {"l1": 1.0}],
    ("head", "anchor"): [{}, {"objectness": False}, {"implicit": False}],
    ("head", "decoupled"): [{"width": 8, "depth": 1}, {"width": 8, "depth": 1, "objectness": False}],
    ("head", "distribution"): [{"width": 8}, {"width": 8, "bins": 5, "prior_scale": 2.0}],
    ("head", "one-to-one"): [{"width": 8}, {"width": 8, "detach": False}],
}


def all_checks() -> Iterator[Check]:
    """Yield the checks of all rows of the kinds that have some."""
    for row in bundled_rows():
        if row.kind in tuple(CHECKS):
            cls = workshop().component(Kind(row.kind), row.name)
            for settings in SETTINGS.get((row.kind, row.name), [{}]):
                yield from checks_of(cls, settings=settings)


@parametrize_with_checks(all_checks())
def test_the_catalogue_keeps_its_contracts(check: Check) -> None:
    check()


def test_the_table_of_settings_names_rows() -> None:
    rows = {(row.kind, row.name) for row in bundled_rows()}

    assert set(SETTINGS) <= rows


@pytest.mark.parametrize("kind", CHECKS)
def test_every_kind_with_checks_has_rows(kind: Kind) -> None:
    assert any(row.kind == kind for row in bundled_rows())
