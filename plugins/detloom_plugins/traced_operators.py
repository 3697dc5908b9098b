"""From an operator that a converter does not know to the modules that use it.

Converters name the operator alone; torch's exported program knows which module each of its operators came from.
"""

from collections.abc import Iterable, Iterator

import torch

from detloom.errors import ExportError, reason
from detloom.export.network import Network, Placement, Verdict

__all__ = ["refusals"]


def refusals(network: Network, operators: Iterable[str], *, by: str) -> tuple[Verdict, ...]:
    """Return a verdict for each module that uses an operator which a converter refused.

    Args:
        network: What was to be converted.
        operators: Names as converters write them: ``aten::special_bessel_j0``, ``prims.bessel_j0.default``.
        by: What refused them.

    Raises:
        ExportError: The network cannot be traced.
    """
    wanted = dict.fromkeys(operators)
    found = list(_uses(network))
    return tuple(
        Verdict(
            path,
            operator,
            Placement.REFUSED,
            reason=f"{by} has no conversion for it",
            remedy="Replace the module, or write what it computes with other operators.",
        )
        for operator in wanted
        for path in dict.fromkeys(path for name, path in found if _matches(name, operator)) or [""]
    )


def _uses(network: Network) -> Iterator[tuple[str, str]]:
    """Yield the name of each operator, as ``aten::conv2d``, and the path of the module that calls it."""
    try:
        program = torch.export.export(network.module, (network.example_BCHW(),))
    except Exception as error:
        raise ExportError(
            f"the network cannot be traced: {reason(error)}\n"
            "  A network that is exported has no branches that depend on values; take them out of its modules."
        ) from error
    for node in program.graph.nodes:
        if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):  # noqa: SLF001 - the type has no public name
            stack = list((node.meta.get("nn_module_stack") or {}).values())
            yield node.target.name(), stack[-1][0] if stack else ""


def _matches(name: str, operator: str) -> bool:
    """Return whether a traced operator is the one that a converter names, perhaps after it took it apart."""
    return _plain(name) == _plain(operator) or _plain(name).endswith(f"_{_plain(operator)}")


def _plain(operator: str) -> str:
    """Return ``bessel_j0`` for ``prims.bessel_j0.default`` and ``aten::bessel_j0``."""
    return operator.replace("::", ".").split(".")[1 if "." in operator or "::" in operator else 0]
