"""From an operator that a converter does not know to the modules that use it.

Converters name the operator alone; torch's exported program knows which module each of its operators came from.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from detloom.errors import ExportError, reason
from detloom.export.network import Network, Placement, Verdict

__all__ = ["refusals", "refused", "traced"]


def refusals(network: Network, operators: Iterable[str], *, by: str) -> tuple[Verdict, ...]:
    """Return a verdict for each module that uses an operator which a converter refused.

    Args:
        network: What was to be converted.
        operators: Names as converters write them: ``aten::special_bessel_j0``, ``prims.bessel_j0.default``.
        by: What refused them.

    Raises:
        ExportError: The network cannot be traced.
    """
    uses = list(_uses(network))
    known = {name for name, _ in uses}
    return tuple(
        Verdict(
            path,
            operator,
            Placement.REFUSED,
            reason=f"{by} has no conversion for it",
            remedy="Replace the module, or write what it computes with other operators.",
        )
        for operator in dict.fromkeys(operators)
        for path in dict.fromkeys(path for name, path in uses if name in _matching(operator, known)) or [""]
    )


def refused(verdicts: Sequence[Verdict]) -> ExportError:
    """Return the error that names operators and modules of verdicts."""
    lines = [
        f"  {each.module or 'a module that is not known'}: {each.operator}: {each.reason}. {each.remedy}"
        for each in verdicts
    ]
    return ExportError("\n".join(("the network has operators that cannot be exported; nothing was written", *lines)))


def traced(module: nn.Module, example_BCHW: Tensor, *, dynamic_batch: bool = False) -> torch.export.ExportedProgram:
    """Return torch's exported program of a module.

    Raises:
        ExportError: It cannot be traced.
    """
    shapes = ({0: torch.export.Dim("batch")},) if dynamic_batch else None
    try:
        return torch.export.export(module, (example_BCHW,), dynamic_shapes=shapes)
    except Exception as error:
        raise ExportError(
            f"the network cannot be traced: {reason(error)}\n"
            "  A network that is exported has no branches that depend on values; take them out of its modules."
        ) from error


def _uses(network: Network) -> Iterator[tuple[str, str]]:
    """Yield the name of each operator, as ``special_bessel_j0``, and the path of the module that calls it."""
    for node in traced(network.module, network.example_BCHW()).graph.nodes:
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):  # noqa: SLF001 - the type has no public name
            stack = list((node.meta.get("nn_module_stack") or {}).values())
            yield _plain(str(node.target)), stack[-1][0] if stack else ""


def _matching(operator: str, known: Collection[str]) -> set[str]:
    """Return the traced operators that a converter means.

    It may have taken them apart, and given them other names: ``prims.bessel_j0`` for ``special_bessel_j0``.
    """
    name = _plain(operator)
    if name in known:
        return {name}
    return {each for each in known if each.rpartition("_")[2] == name.rpartition("_")[2]}


def _plain(operator: str) -> str:
    """Return ``bessel_j0`` for ``prims.bessel_j0.default`` and ``aten::bessel_j0_``."""
    return operator.replace("::", ".").split(".")[1].rstrip("_")
