"""Each operator by itself: against torch in float32 and 8 bits, and to the bit against LiteRT for Microcontrollers."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from litert_cases import Maps, decibels, network_of, pictures, ran
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from detloom_plugins.litert import Converted, convert_to_float, convert_to_int8, graph_of

pytest.importorskip("ai_edge_litert", reason="LiteRT is an extra: pip install 'detloom[litert]'")

Branch = tuple[Callable[[Any, Tensor], Tensor], Sequence[nn.Module]]
SIZE = (16, 16)


def after_conv(*modules: nn.Module) -> Branch:
    """Return modules after a convolution of their own, which makes numbers of both signs."""
    return chain(nn.Conv2d(3, 8, 1), *modules)


def chain(*modules: nn.Module) -> Branch:
    return (lambda held, x: nn.Sequential(*held)(x), modules)


def of_two(function: Callable[[Tensor, Tensor], Tensor]) -> Branch:
    return (lambda held, x: function(held[0](x), held[1](x)), [nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 3, padding=1)])


def of_one(function: Callable[[Tensor], Tensor], *modules: nn.Module) -> Branch:
    return (
        lambda held, x: nn.Sequential(*held[1:])(function(held[0](x))),
        [nn.Conv2d(3, 8, 1), *modules],
    )


def squeezed(held: Any, x_BCHW: Tensor) -> Tensor:
    y_BCHW: Tensor = held[0](x_BCHW)
    weight_BC11: Tensor = held[2](functional.relu(held[1](y_BCHW.mean((2, 3), keepdim=True)))).sigmoid()
    return y_BCHW * weight_BC11


def norm() -> nn.BatchNorm2d:
    made = nn.BatchNorm2d(8)
    made.running_mean, made.running_var = torch.rand(8) - 0.5, torch.rand(8) + 0.5
    return made


@cache
def branches() -> Mapping[str, Branch]:
    torch.manual_seed(0)
    conv = nn.Conv2d
    means_C11 = torch.tensor([0.4, 0.5, 0.6])[:, None, None]
    return {
        "convolution": chain(conv(3, 8, 3, 1, 1)),
        "convolution of stride 2": chain(conv(3, 8, 3, 2, 1)),
        "convolution of 6 x 6": chain(conv(3, 8, 6, 2, 2)),
        "convolution of 3 x 5": chain(conv(3, 8, (3, 5), padding="same")),
        "convolution of an even kernel": chain(conv(3, 8, 4, padding="same")),
        "convolution without padding": chain(conv(3, 8, 3)),
        "dilated": chain(conv(3, 8, 3, 1, 2, 2)),
        "dilated with stride": chain(conv(3, 8, 3, 2, 2, 2)),
        "by channel": after_conv(conv(8, 8, 3, 1, 1, groups=8)),
        "by channel, twice as many": after_conv(conv(8, 16, 3, 2, 1, groups=8)),
        "by channel, dilated": after_conv(conv(8, 8, 3, 1, 2, 2, groups=8)),
        "grouped": after_conv(conv(8, 16, 3, 1, 1, groups=4)),
        "transposed": after_conv(nn.ConvTranspose2d(8, 4, 2, 2)),
        "transposed and cropped": after_conv(nn.ConvTranspose2d(8, 4, 4, 2, 1)),
        "transposed with output padding": after_conv(nn.ConvTranspose2d(8, 4, 3, 2, 1, 1)),
        "relu": after_conv(nn.ReLU(), conv(8, 8, 1)),
        "relu6": after_conv(nn.ReLU6(), conv(8, 8, 1)),
        "leaky relu": after_conv(nn.LeakyReLU(0.1), conv(8, 8, 1)),
        "silu": after_conv(nn.SiLU(), conv(8, 8, 1)),
        "hard swish": after_conv(nn.Hardswish(), conv(8, 8, 1)),
        "hard sigmoid": after_conv(nn.Hardsigmoid(), conv(8, 8, 1)),
        "sigmoid": after_conv(nn.Sigmoid()),
        "tanh": after_conv(nn.Tanh()),
        "relu that is read beside its input": of_one(lambda y: y + functional.relu(y)),
        "relu6 that is read beside its input": of_one(lambda y: y + functional.relu6(9 * y)),
        "sum": of_two(torch.add),
        "sum with relu": of_two(lambda a, b: functional.relu(a + b)),
        "difference": of_two(torch.sub),
        "product": of_two(torch.mul),
        "square": of_one(lambda y: y**2),
        "larger of two": of_two(torch.maximum),
        "smaller of two": of_two(torch.minimum),
        "constants by channel": (lambda held, x: held[0]((x - means_C11) / 0.25), [conv(3, 8, 3, 1, 1)]),
        "one less a map": of_one(lambda y: 1 - y),
        "negated": of_one(torch.neg),
        "norm after a convolution": after_conv(norm(), nn.ReLU()),
        "norm after an activation": after_conv(nn.SiLU(), norm()),
        "squeezed and excited": (squeezed, [conv(3, 8, 1), conv(8, 4, 1), conv(4, 8, 1)]),
        "pool": after_conv(nn.MaxPool2d(2)),
        "pool of stride 1": after_conv(nn.MaxPool2d(5, 1, 2)),
        "pool that pads beside negative numbers": after_conv(nn.MaxPool2d(3, 2, 1)),
        "pool that pads beside positive numbers": after_conv(nn.ReLU(), nn.MaxPool2d(3, 2, 1)),
        "pool that reaches over": after_conv(nn.MaxPool2d(3, 2, ceil_mode=True)),
        "mean of windows": after_conv(nn.AvgPool2d(2)),
        "mean of windows with zeros": after_conv(nn.AvgPool2d(3, 1, 1)),
        "mean of windows on the map": after_conv(nn.AvgPool2d(3, 1, 1, count_include_pad=False)),
        "mean of a map": after_conv(nn.AdaptiveAvgPool2d(1)),
        "mean of parts": after_conv(nn.AdaptiveAvgPool2d(4)),
        "enlarged twice": after_conv(nn.Upsample(scale_factor=2)),
        "enlarged three times": after_conv(nn.Upsample(scale_factor=3)),
        "interpolated": after_conv(nn.Upsample(scale_factor=2, mode="bilinear")),
        "interpolated between corners": after_conv(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)),
        "interpolated by one and a half": after_conv(nn.Upsample(scale_factor=1.5, mode="bilinear")),
        "pixels to channels": after_conv(nn.PixelUnshuffle(2)),
        "channels to pixels": after_conv(nn.PixelShuffle(2)),
        "phases": (
            lambda held, x: held[0](torch.cat([x[..., r::2, c::2] for c in (0, 1) for r in (0, 1)], 1)),
            [conv(12, 8, 3, 1, 1)],
        ),
        "padded": of_one(lambda y: functional.pad(y, (1, 2, 0, 1))),
        "padded by a number": of_one(lambda y: functional.pad(y, (1, 2, 0, 1), value=0.25)),
        "padded before a convolution": (lambda held, x: held[0](functional.pad(x, (0, 1, 0, 1))), [conv(3, 8, 3, 2)]),
        "halves exchanged": of_one(lambda y: torch.cat(y.chunk(2, 1)[::-1], 1)),
        "uneven parts exchanged": of_one(lambda y: torch.cat(torch.split(y, [5, 3], 1)[::-1], 1)),
        "every third channel": of_one(lambda y: y[:, 1::3]),
        "joined with the picture": (lambda held, x: torch.cat([held[0](x), x], 1), [conv(3, 8, 1)]),
        "joined with a sigmoid": of_one(lambda y: torch.cat([y, y.sigmoid()], 1)),
        "joined side by side": of_two(lambda a, b: torch.cat([a, b], 3)),
        "the picture's pool": chain(nn.MaxPool2d(2)),
    }


class Results(NamedTuple):
    """What each operator makes, by all that run it."""

    torch: dict[str, NDArray[Any]]
    real: dict[str, NDArray[Any]]
    fast: dict[str, NDArray[Any]]
    reference: dict[str, NDArray[Any]]
    int8: Converted


@pytest.fixture(scope="module")
def results() -> Results:
    # Tracing takes most of the time, so that all operators are traced as one network.
    network = network_of(Maps(*branches().values()), size=SIZE, maps=len(branches()))
    graph = graph_of(network)
    real = convert_to_float(network, graph)
    int8 = convert_to_int8(network, graph, pictures(SIZE), calibration="min-max", percentile=100)
    with torch.no_grad():
        wanted = [each.numpy() for each in network.module(pictures(SIZE))]

    def named(maps: Sequence[NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return dict(zip(branches(), maps, strict=True))

    return Results(
        named(wanted),
        named(ran(real, pictures(SIZE))),
        named(ran(int8, pictures(SIZE))),
        named(ran(int8, pictures(SIZE), reference=True)),
        int8,
    )


@pytest.mark.parametrize("name", branches())
def test_float_operator_computes_what_torch_does(results: Results, name: str) -> None:
    np.testing.assert_allclose(results.real[name], results.torch[name], rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("name", branches())
@pytest.mark.parametrize("kernels", ["fast", "reference"])
def test_8_bit_operator_is_as_exact_as_8_bits_are(results: Results, kernels: str, name: str) -> None:
    found = getattr(results, kernels)[name]

    # 8 bits that span the range of such numbers give 40; a mistake of one column or scale leaves less than 25.
    assert decibels(results.torch[name], found) > 36


def test_microcontrollers_compute_the_same_bits(results: Results) -> None:
    runtime = pytest.importorskip("tflite_micro", reason="needs tflite-micro, of the test extra").runtime
    interpreter = runtime.Interpreter.from_bytes(results.int8.data, arena_size=16 << 20)

    for index, picture_CHW in enumerate(pictures(SIZE).numpy()):
        pixels = np.round(picture_CHW.transpose(1, 2, 0)[None] * 255) - 128
        interpreter.set_input(pixels.astype(np.int8), 0)
        interpreter.invoke()
        for number, (name, tensor) in enumerate(zip(branches(), results.int8.tensors, strict=True)):
            bits = interpreter.get_output(number).astype(np.float32)
            scale = tensor["scale"]
            assert scale is not None
            found = ((bits - np.float32(tensor["zero_point"])) * np.float32(scale)).transpose(0, 3, 1, 2)
            np.testing.assert_array_equal(found, results.reference[name][index : index + 1], err_msg=name)
