"""From a trained detector to the network that exporters are given: folded, rewritten for the target, proved equal.

Shape letters: B images, H and W rows and columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from detloom.building import build
from detloom.data.settings import size_complaint
from detloom.detector import Detector
from detloom.errors import ExportError, RecipeError, suggest
from detloom.export.network import Network, RawMaps
from detloom.export.targets import Chosen
from detloom.interfaces import ReparamPass
from detloom.kinds import Kind
from detloom.recipe import USE
from detloom.reparam import FoldReport, fold
from detloom.workshop import workshop

__all__ = ["Deployed", "canvas_of", "deploy", "modules_named", "network_of"]


@dataclass(frozen=True, slots=True, eq=False)
class Deployed:
    """A detector in the form that is exported.

    Attributes:
        detector: Folded and rewritten, in evaluation mode.
        passes: Names of the passes that it went through, in order.
        report: What they did, and how equal the result is.
    """

    detector: Detector
    passes: tuple[str, ...]
    report: FoldReport


def deploy(detector: Detector, chosen: Chosen, rewrites: Sequence[str] = (), *, example: Tensor | None) -> Deployed:
    """Fold a detector by its recipe's passes, then by a user's, then by those that the exporter asks for.

    The exporter's come last, as they give the outputs the form that it needs.

    Args:
        detector: The training form, or one that is folded already.
        chosen: What it is exported to.
        rewrites: Names of passes beside these.
        example: Pictures that the result is proved on; None proves nothing.

    Raises:
        RecipeError: There is no such pass.
        PluginError: A pass changed what the detector finds.
    """
    passes: list[ReparamPass] = list(detector.passes)
    passes += [build(Kind.REPARAM, {USE: name}, where="--pass") for name in rewrites]
    for name in chosen.exporter.passes:
        passes.append(build(Kind.REPARAM, {USE: name}, where=f"the passes of the exporter '{chosen.name}'"))
    folded, report = fold(detector.cpu(), passes, example=example)
    names = tuple(dict.fromkeys(workshop().name_of(type(each)) for each in passes))
    # They were applied, and are not to be again.
    folded.passes = ()
    return Deployed(folded.eval(), names, report)


def network_of(detector: Detector, size: tuple[int, int], precise: Sequence[str] = ()) -> Network:
    """Return what exporters are given of a folded detector."""
    module = RawMaps(detector).eval().float()
    return Network(module, size, detector.head.decode_spec(), detector.names, tuple(precise))


def canvas_of(detector: Detector, image_size: int | tuple[int, int] | None) -> tuple[int, int]:
    """Return height and width of the input: as given, else as the recipe says.

    Raises:
        RecipeError: There is neither, or they are no multiples of the largest stride.
    """
    if image_size is None:
        if detector.recipe is None:
            raise RecipeError(
                "this detector has no recipe that says how large pictures are; give the size of the input"
            )
        image_size = detector.recipe.data.image_size
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if complaint := size_complaint(size, detector.max_stride):
        raise RecipeError(f"--image-size: {complaint}")
    return size


def modules_named(network: Network, names: Sequence[str], kinds: tuple[type, ...]) -> tuple[str, ...]:
    """Return the paths of the modules of some kinds that lie at, or in, the modules of some names.

    Raises:
        ExportError: There is no module of a name, or nothing of these kinds in it.
    """
    known = [path for path, _ in network.module.named_modules() if path]
    found: list[str] = []
    for name in names:
        if name not in known:
            raise ExportError(
                f"--mixed {name}: the deployed network has no module of that name.{suggest(name, known)}\n"
                f"  {_children(known, name)}"
            )
        inside = [
            path
            for path, module in network.module.named_modules()
            if f"{path}.".startswith(f"{name}.") and isinstance(module, kinds)
        ]
        if not inside:
            raise ExportError(f"--mixed {name}: there is no convolution and no linear layer in this module")
        found += inside
    return tuple(dict.fromkeys(found))


def _children(known: Sequence[str], name: str) -> str:
    """Return in words what lies in the innermost module that a misspelt path gets right."""
    parent = name.rpartition(".")[0]
    while parent and parent not in known:
        parent = parent.rpartition(".")[0]
    start = f"{parent}." if parent else ""
    inside = [path.removeprefix(start) for path in known if path.startswith(start)]
    names = ", ".join(path for path in inside if "." not in path)
    return f"in {parent} there are: {names}" if parent else f"its parts are: {names}"
