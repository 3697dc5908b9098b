"""From a network to an ExecuTorch program: quantise the exported graph, and give a backend what it takes of it.

Shape letters: N pictures to calibrate on, H and W rows and columns.
"""

import csv
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from detloom.errors import ExportError
from detloom.export.network import Network, Placement, Verdict

__all__ = ["Lowered", "figures_of", "lower", "quantised", "verdicts_of"]

# What is no work of its own: it changes the form of numbers, or takes outputs apart.
GLUE = ("quantize_per", "dequantize_per", "getitem", "executorch_call_delegate", "_to_dim_order_copy")


@dataclass(frozen=True, slots=True)
class Lowered:
    """A program, and what became of the graph.

    Attributes:
        program: The ``.pte`` file.
        tosa: What the reference model runs; None for backends that do not pass by TOSA.
        scales: Scale and zero point of the input and of each output; empty for real numbers.
        delegated: Module and operator of each node that the backend takes.
        left: The same of those that it leaves to the portable kernels.
        estimates: Vela's one row of figures.
    """

    program: bytes
    tosa: bytes | None
    scales: tuple[tuple[float, int], ...]
    delegated: tuple[tuple[str, str], ...]
    left: tuple[tuple[str, str], ...]
    estimates: Mapping[str, str] = field(default_factory=dict)


def quantised(network: Network, pictures_NCHW: Tensor, accelerator: str | None) -> nn.Module:
    """Return the network in eight bits, weights by channel, with the ranges that it has on pictures.

    Args:
        network: What to quantise.
        pictures_NCHW: RGB in [0, 1].
        accelerator: An Ethos-U; None for XNNPACK.
    """
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    program = torch.export.export(network.module, (network.example_BCHW(),))
    prepared = prepare_pt2e(program.module(), _quantiser(accelerator))
    with torch.inference_mode():
        for picture_3HW in pictures_NCHW:
            prepared(picture_3HW[None])
    graph: nn.Module = convert_pt2e(prepared)
    return graph


def lower(graph: nn.Module, network: Network, accelerator: str | None) -> Lowered:
    """Return the program of a graph.

    Raises:
        ExportError: The backend's compiler fails.
    """
    from executorch.exir import to_edge_transform_and_lower

    with tempfile.TemporaryDirectory(prefix="detloom-executorch-") as place:
        try:
            edge = to_edge_transform_and_lower(
                torch.export.export(graph, (network.example_BCHW(),)),
                partitioner=[_partitioner(accelerator, Path(place))],
            )
            # Before it becomes a program, which adds nodes that plan its memory.
            module = edge.exported_program().graph_module
            left = tuple(map(_named, _work(module.graph.nodes)))
            delegated = tuple(_named(node) for each in _delegates(module) for node in _work(each))
            scales = () if accelerator is None else tuple(_scales(module.graph.nodes))
            program = bytes(edge.to_executorch().buffer)
        except Exception as error:
            raise ExportError(
                f"executorch: {accelerator or 'xnnpack'} cannot take the network: {type(error).__name__}: "
                f"{str(error).splitlines()[0] if str(error) else 'no reason given'}"
            ) from error
        return Lowered(
            program=program,
            tosa=None if accelerator is None else (Path(place) / "out.tosa").read_bytes(),
            scales=scales,
            delegated=delegated,
            left=left,
            estimates={} if accelerator is None else _estimates(Path(place)),
        )


def verdicts_of(lowered: Lowered) -> tuple[Verdict, ...]:
    """Return where each operator runs."""
    return (
        *(Verdict(module, operator, Placement.NPU) for module, operator in lowered.delegated),
        *(
            Verdict(
                module,
                operator,
                Placement.CPU,
                reason="the backend does not take it, so a portable kernel runs it",
                remedy="replace the operator, or leave it to the host behind the outputs",
            )
            for module, operator in lowered.left
        ),
    )


def figures_of(lowered: Lowered) -> Mapping[str, float]:
    """Return operators by place, the size of the file, and Vela's estimates."""
    figures = {
        "npu_operators": float(len(lowered.delegated)),
        "cpu_operators": float(len(lowered.left)),
        "file_kib": len(lowered.program) / 1024,
    }
    for name, key, factor in (
        ("inference_ms", "inference_time", 1e3),
        ("sram_kib", "sram_memory_used", 1.0),
        ("flash_kib", "off_chip_flash_memory_used", 1.0),
        ("npu_cycles", "cycles_npu", 1.0),
    ):
        if key in lowered.estimates:
            figures[name] = float(lowered.estimates[key]) * factor
    return figures


def _quantiser(accelerator: str | None) -> Any:
    if accelerator is None:
        from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
            XNNPACKQuantizer,
            get_symmetric_quantization_config,
        )

        return XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    from executorch.backends.arm.ethosu import EthosUCompileSpec
    from executorch.backends.arm.quantizer import EthosUQuantizer, get_symmetric_quantization_config

    quantiser = EthosUQuantizer(EthosUCompileSpec(target=accelerator))
    return quantiser.set_global(get_symmetric_quantization_config(is_per_channel=True))


def _partitioner(accelerator: str | None, place: Path) -> Any:
    if accelerator is None:
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

        return XnnpackPartitioner()
    from executorch.backends.arm.ethosu import EthosUCompileSpec, EthosUPartitioner

    return EthosUPartitioner(EthosUCompileSpec(target=accelerator).dump_intermediate_artifacts_to(str(place)))


def _delegates(module: fx.GraphModule) -> Iterable[Iterable[fx.Node]]:
    for node in module.graph.nodes:
        if node.op == "get_attr" and hasattr(module, node.target):
            original = getattr(getattr(module, node.target), "original_module", None)
            if original is not None:
                yield original.graph.nodes


def _work(nodes: Iterable[fx.Node]) -> list[fx.Node]:
    return [node for node in nodes if node.op == "call_function" and not any(word in str(node.target) for word in GLUE)]


def _named(node: fx.Node) -> tuple[str, str]:
    """Return the module that a node comes from, and its operator as ``aten.cat``."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    operator = str(node.target).partition("EdgeOpOverload: ")[2] or str(node.target)
    return (stack[-1][0] if stack else ""), ".".join(operator.partition(">")[0].split(".")[:2])


def _scales(nodes: Iterable[fx.Node]) -> Iterable[tuple[float, int]]:
    for node in nodes:
        if "quantize_per_tensor" in str(node.target):
            yield float(node.args[1]), int(node.args[2])  # type: ignore[arg-type]  # by the operator's schema


def _estimates(place: Path) -> dict[str, str]:
    for path in place.rglob("*_summary_*.csv"):
        with path.open(encoding="utf-8", newline="") as file:
            return next(csv.DictReader(file), {})
    return {}
