"""What an exporter says that it wrote, held against its contract where it enters the core."""

from collections.abc import Iterator
from pathlib import Path

from detloom.decode_spec import MapSpec
from detloom.errors import PluginError
from detloom.export.network import Exported, Network
from detloom.host_spec import TensorSpec

__all__ = ["check_exported", "map_shape"]


def check_exported(exported: object, network: Network, folder: Path, exporter: str) -> Exported:
    """Return what an exporter returned, if it keeps the contract.

    Raises:
        PluginError: It does not; says what was expected.
    """
    if not isinstance(exported, Exported):
        raise PluginError(f"the exporter '{exporter}' returned a {type(exported).__name__}, not an Exported")
    complaints = list(_complaints(exported, network, folder))
    if complaints:
        raise PluginError(
            f"the exporter '{exporter}' returned {'; '.join(complaints)}. See detloom.export.network.Exported."
        )
    return exported


def map_shape(tensor: TensorSpec) -> tuple[int, int, int]:
    """Return channels, rows and columns of an output, in whatever order it lies in the file."""
    _, first, second, third = tensor["shape"]
    return (first, second, third) if tensor["layout"] == "NCHW" else (third, first, second)


def _complaints(exported: Exported, network: Network, folder: Path) -> Iterator[str]:
    if not exported.files:
        yield "no files"
    for name in exported.files:
        path = folder / name
        if not path.is_file() or not path.resolve().is_relative_to(folder.resolve()):
            yield f"the file '{name}', which is not in the folder that it was given"
    size = [exported.input["height"], exported.input["width"]]
    if size != list(network.image_size):
        yield f"an input of height and width {size}, where the network's are {list(network.image_size)}"
    names = network.map_names
    if len(exported.tensors) != len(names):
        yield f"{len(exported.tensors)} tensors, where the network has {len(names)} maps: {', '.join(names)}"
        return
    for name, tensor, each in zip(names, exported.tensors, network.maps, strict=True):
        expected = _expected_shape(network, each)
        if len(tensor["shape"]) != 4 or map_shape(tensor) != expected:
            yield (
                f"'{tensor['name']}' of shape {tensor['shape']} ({tensor['layout']}) for the map '{name}', which has "
                f"{expected[0]} channels, {expected[1]} rows and {expected[2]} columns"
            )


def _expected_shape(network: Network, each: MapSpec) -> tuple[int, int, int]:
    level = network.decode["levels"][each["level"]]
    of_a_prior = sum(output["channels"] for output in network.decode["outputs"] if output["name"] in each["outputs"])
    height, width = network.image_size
    return len(level["priors"]) * of_a_prior, height // level["stride"], width // level["stride"]
