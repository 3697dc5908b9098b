"""What a host is told of an exported file."""

from detloom.decode_spec import DecodeSpec
from detloom.engine.settings import PredictSettings
from detloom.export.network import Exported, Network
from detloom.host.reading import check_host_spec
from detloom.host_spec import HostSpec

__all__ = ["described"]


def described(network: Network, exported: Exported, settings: PredictSettings) -> HostSpec:
    """Return the description of an exported file, by which a host finds what ``Detector.predict`` finds.

    Args:
        network: What was exported.
        exported: The input and the outputs as the file has them.
        settings: Which detections are kept.

    Raises:
        ExportError: The head's description and the file's outputs do not fit together; says where.
    """
    spec: HostSpec = {
        "format": 1,
        "names": list(network.names),
        "input": exported.input,
        "tensors": list(exported.tensors),
        "decode": _as_predict_scores(network.decode),
        "selection": {
            "score": settings.score,
            "overlap": settings.overlap,
            "max_detections": settings.max_detections,
            "candidates": settings.candidates,
            "agnostic": settings.agnostic,
        },
    }
    advice = "Make the head's decode_spec() and the exporter's tensors agree."
    return check_host_spec(spec, exported.files[0] if exported.files else "the export", advice)


def _as_predict_scores(decode: DecodeSpec) -> DecodeSpec:
    """Return the description with the score of a single class as the suppression takes it: the objectness alone."""
    if decode["num_classes"] == 1 and "objectness" in decode["score"]:
        return {**decode, "score": ["objectness"]}
    return decode
