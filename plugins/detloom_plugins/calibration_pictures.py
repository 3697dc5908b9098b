"""Pictures to find the ranges of numbers on, demanded: ranges of anything else would be those of no network in use."""

from torch import Tensor

from detloom.errors import ExportError

__all__ = ["demand_pictures"]


def demand_pictures(exporter: str, calibration_NCHW: Tensor | None) -> Tensor:
    """Return the pictures that an exporter was given.

    Raises:
        ExportError: There are none.
    """
    if calibration_NCHW is None or not len(calibration_NCHW):
        raise ExportError(
            f"the exporter '{exporter}' needs pictures to find the ranges of numbers; give some with --data"
        )
    return calibration_NCHW
