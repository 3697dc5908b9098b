"""How true an output is: by hand."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from detloom.errors import PluginError
from detloom.export.fidelity import decibels, fidelities, forward_of, maps_on, median_ms
from detloom.testing.exporter_trials import SIZE, tiny_network


def test_noise_a_hundredth_of_the_signal_is_twenty_decibels() -> None:
    (found,) = fidelities([torch.tensor([[10.0, 0.0]])], [torch.tensor([[10.0, 1.0]])], ["map"])

    assert found.sqnr_db == pytest.approx(20.0)
    assert (found.output, found.largest_error, found.peak) == ("map", 1.0, 10.0)


def test_equal_outputs_have_no_noise_and_noise_without_a_signal_is_nothing_else() -> None:
    zeros, ones = torch.zeros(1, 2), torch.ones(1, 2)

    found = fidelities([ones, zeros, zeros], [ones, zeros, ones], ["a", "b", "c"])

    assert [each.sqnr_db for each in found] == [math.inf, math.inf, -math.inf]


def test_ratio_of_one_is_zero_decibels() -> None:
    assert decibels(1.0) == 0.0


def test_output_of_another_shape_is_told_by_its_name() -> None:
    with pytest.raises(PluginError, match=r"the output 'b' has the shape \[1, 2\] where the network's has \[1, 3\]"):
        fidelities([torch.ones(1, 2), torch.ones(1, 3)], [torch.ones(1, 2), torch.ones(1, 2)], ["a", "b"])


def test_maps_of_many_pictures_are_those_of_each() -> None:
    images_BCHW = torch.arange(20.0).reshape(20, 1, 1, 1)

    (found,) = maps_on(lambda some: (some * 2,), images_BCHW)

    assert found.flatten().tolist() == [2.0 * index for index in range(20)]


def test_runner_is_given_rows_after_rows_and_may_compute_in_torch_with_gradients() -> None:
    network = tiny_network()

    def runner(images: np.ndarray) -> list[np.ndarray]:
        assert images.flags.c_contiguous
        wanted = torch.from_numpy(images).clone().requires_grad_()
        return [np.asarray(each.detach()) for each in network.module(wanted)]

    forward = forward_of(runner, network, "float")
    with torch.inference_mode():
        found = forward(torch.rand(2, 3, *SIZE).to(memory_format=torch.channels_last))

    assert [tuple(each.shape) for each in found][:2] == [(2, 4, 8, 12), (2, 1, 8, 12)]


def test_runner_with_too_few_maps_is_told_which_there_are() -> None:
    forward = forward_of(lambda images: [images], tiny_network(), "int8")

    with pytest.raises(PluginError, match=r"runner 'int8' returned 1 maps; the network has 6: stride8_center_size, "):
        forward(torch.rand(1, 3, *SIZE))


def test_time_is_that_of_one_picture() -> None:
    given: list[Tensor] = []

    median_ms(given.append, torch.rand(4, 3, 2, 2))

    assert {tuple(each.shape) for each in given} == {(1, 3, 2, 2)}
