"""Where each operator of a file runs, in the words of preflights: mapped back to modules, with reasons and remedies."""

from collections import Counter
from collections.abc import Sequence

from detloom.export.network import Placement, Verdict
from detloom_plugins.ethos_u.remedies import CASCADE, LARGE_POOL, MANY_PARTS, SPLINTERED, WINDOWS, remedy_of
from detloom_plugins.ethos_u.vela import Compiled, Part
from detloom_plugins.litert.writer import Operator

__all__ = ["figures_of", "verdicts_of"]


def verdicts_of(compiled: Compiled, operators: Sequence[Operator], family: str) -> tuple[Verdict, ...]:
    """Return a verdict for each operator of the file, in its order.

    Args:
        compiled: What Vela made of it.
        operators: Of the file.
        family: Of the accelerator, as ``ethos-u55``.
    """
    return tuple(
        _verdict(operator, compiled.parts.get(index, ()), compiled, family) for index, operator in enumerate(operators)
    )


def figures_of(compiled: Compiled, verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Return Vela's figures, and how many of the file's operators run where."""
    on_cpu = sum(each.placement == Placement.CPU for each in verdicts)
    return {**compiled.figures, "npu_operators": len(verdicts) - on_cpu, "cpu_operators": on_cpu}


def _verdict(operator: Operator, parts: Sequence[Part], compiled: Compiled, family: str) -> Verdict:
    on_cpu = [each for each in parts if not each.is_on_npu]
    if on_cpu:
        reason = next(
            (compiled.complaints[each.output] for each in on_cpu if each.output in compiled.complaints),
            "Vela does not say why",
        )
        return Verdict(operator.module, operator.name, Placement.CPU, reason, remedy_of(operator.name, reason, family))
    # What Vela folded into its neighbours has no parts, and costs nothing.
    cycles = sum(each.cycles for each in parts)
    split = [each for each in parts if not each.is_chained]
    if len(split) < 2:
        return Verdict(operator.module, operator.name, Placement.NPU, "", _advice(operator, split), cycles)
    reason = f"as {_counted(split)}"
    return Verdict(operator.module, operator.name, Placement.SPLIT, reason, _advice(operator, split), cycles)


def _advice(operator: Operator, parts: Sequence[Part]) -> str:
    """Return what makes it faster, where it runs on the NPU but costs far more than it need."""
    if len(parts) >= MANY_PARTS and operator.name in WINDOWS:
        return SPLINTERED
    is_large = operator.name == "MAX_POOL_2D" and any(each.kernel >= LARGE_POOL for each in parts)
    return CASCADE if is_large else ""


def _counted(parts: Sequence[Part]) -> str:
    """Return ``"2 MemoryCopy, 1 Conv2D"``."""
    return ", ".join(f"{number} {name}" for name, number in Counter(each.operator for each in parts).items())
