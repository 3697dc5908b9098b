"""What to change where an operator is not for an Ethos-U, or is slow on it.

Facts: Vela 5.2's reports of supported operators (``vela --supported-ops-report``), and probes of its compiler.
"""

from collections.abc import Mapping

__all__ = ["CASCADE", "LARGE_POOL", "MANY_PARTS", "SPLINTERED", "WINDOWS", "remedy_of"]

LARGE_POOL = 9
MANY_PARTS = 16
# A concatenation is an operator for each input by its nature; of these, one is enough.
WINDOWS = ("AVERAGE_POOL_2D", "CONV_2D", "DEPTHWISE_CONV_2D", "MAX_POOL_2D")
CASCADE = "the reparam pass spp-cascade (`--pass spp-cascade`) makes it of small pools, with the same numbers"
SPLINTERED = (
    "it becomes an operator for each position or group: take strides of 1 to 3, and no groups, or as many as there "
    "are channels"
)

ACTIVATION = "take an activation that is for it: relu, relu6, leaky_relu, silu or hardswish; then train anew"
DECODING = "leave it to the host: export raw maps, as detectors here do, and decode them there"
POOL = "take pool windows of 256 x 256 at most"
RESIZE = {
    "ethos-u85": "scale rows and columns by a whole number",
    "": (
        "scale both sides by 2, 4 or 8: take an input whose sides are multiples of the coarsest stride, and levels "
        "that halve one another"
    ),
}
REMEDIES: Mapping[str, str] = {
    "ARG_MAX": DECODING,
    "AVERAGE_POOL_2D": POOL,
    "BROADCAST_TO": "enlarge by nearest neighbours (torch.nn.Upsample), not by repeating",
    "DEPTHWISE_CONV_2D": "take strides of 1 to 3; a larger one is one of 2 after another",
    "EXP": ACTIVATION,
    "GATHER": "take slices, which need no table of indices",
    "LOG": ACTIVATION,
    "MAX_POOL_2D": POOL,
    "POW": "the reparam pass square (`--pass square`) makes x ** 2 a product",
    "SOFTMAX": f"{DECODING}; over the last axis alone it is for the NPU",
    "TOPK_V2": DECODING,
    "TRANSPOSE_CONV": "take strides of 1 or 2, or nearest neighbours and a convolution (`enlarge` of the neck)",
}
IN_FLOAT = (
    "it computes in float32, which an NPU has not: keep no module precise (`--mixed`), and activations that the file "
    "has in 8 bits: relu, relu6, leaky_relu, silu, hardswish"
)
OTHERWISE = "make the module of operators that the NPU has; `vela --supported-ops-report` lists them"


def remedy_of(operator: str, reason: str, family: str) -> str:
    """Return what to change.

    Args:
        operator: Of the file.
        reason: Vela's.
        family: Of the accelerator.
    """
    if "Float32" in reason or operator in ("DEQUANTIZE", "QUANTIZE"):
        return IN_FLOAT
    if operator.startswith("RESIZE"):
        return RESIZE.get(family, RESIZE[""])
    return REMEDIES.get(operator, OTHERWISE)
