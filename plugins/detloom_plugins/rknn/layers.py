"""What the compiler's log says of each layer.

A row of its table: number, operator, type, where it runs, shapes, cycles, traffic, and the ONNX node it came from, as
``Conv:backbone.stem.0.conv/Conv``. Our ONNX files call nodes after modules.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from detloom.export.network import Placement, Verdict

__all__ = ["figures_of", "module_of", "verdicts_of"]

ROW = re.compile(
    r"D RKNN: \[[\d:.]+\] (?P<id>\d+) +(?P<operator>\w+) +(?P<type>\w+) +(?P<target>NPU|CPU|GPU) +.*?"
    r"(?P<ddr>\d+)/(?P<npu>\d+)/(?P<total>\d+) +\S+ +(?P<node>\S+)\s*$"
)
EDGES = ("InputOperator", "OutputOperator")
MEMORY = re.compile(r"Total (Internal|Weight) Memory Size: ([\d.]+)KB")


def verdicts_of(log: str) -> tuple[Verdict, ...]:
    """Return where each layer runs; what hands tensors in and out is none."""
    found = [row for line in log.splitlines() if (row := ROW.search(line)) and row["operator"] not in EDGES]
    return tuple(
        Verdict(
            module=module_of(row["node"]),
            operator=row["operator"],
            placement=Placement.NPU if row["target"] == "NPU" else Placement.CPU,
            reason="" if row["target"] == "NPU" else f"the compiler places {row['operator']} on the {row['target']}",
            remedy="" if row["target"] == "NPU" else "replace the operator, or leave it to the host behind the outputs",
            cycles=int(row["total"]),
        )
        for row in found
    )


def figures_of(log: str, model: Path) -> Mapping[str, float]:
    """Return operators by place, cycles, memory in KiB, and the size of the file."""
    verdicts = verdicts_of(log)
    on_npu = sum(each.placement == Placement.NPU for each in verdicts)
    memory = {kind: float(size) for kind, size in MEMORY.findall(log)}
    return {
        "npu_operators": on_npu,
        "cpu_operators": len(verdicts) - on_npu,
        "cycles": sum(each.cycles or 0 for each in verdicts),
        **({"internal_memory_kib": memory["Internal"]} if "Internal" in memory else {}),
        **({"weight_memory_kib": memory["Weight"]} if "Weight" in memory else {}),
        "file_kib": model.stat().st_size / 1024,
    }


def module_of(node: str) -> str:
    """Return the module that a layer's node came from: ``backbone.stem.0.conv`` for that of this file's example."""
    return (node.partition(":")[2] or node).rpartition("/")[0]
