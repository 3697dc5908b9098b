"""Which layers suffer from eight bits."""

import copy

import pytest
import torch
from torch import Tensor, nn

from detloom.errors import ExportError
from detloom.export.network import Network
from detloom.export.sensitivity import most_sensitive, sensitivities
from detloom.testing.exporter_trials import pictures, tiny_network


class Uneven(nn.Module):
    """A layer whose channels differ a thousandfold, after one whose channels do not."""

    def __init__(self) -> None:
        super().__init__()
        self.even, self.uneven, self.last = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        with torch.no_grad():
            for layer in (self.even, self.uneven, self.last):
                layer.weight.copy_(torch.eye(3)[:, :, None, None])
                assert layer.bias is not None
                layer.bias.zero_()
            self.uneven.weight[0] *= 1000
            self.last.weight[:, 0] /= 1000

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor]:
        return (self.last(self.uneven(self.even(images_BCHW))),)


def test_layer_whose_channels_share_a_grid_that_fits_one_of_them_is_the_most_sensitive() -> None:
    network = Network(Uneven().eval(), (8, 8), tiny_network().decode, ("a",))

    ranking = sensitivities(network, torch.rand(2, 3, 8, 8))

    assert ranking[0].module == "uneven"
    assert ranking[0].sqnr_db < ranking[1].sqnr_db - 20


def test_all_layers_are_ranked_and_the_network_is_left_as_it_was() -> None:
    network = tiny_network()
    before = copy.deepcopy(network.module.state_dict())

    ranking = sensitivities(network, pictures()[1])

    assert len(ranking) == 10
    assert [each.sqnr_db for each in ranking] == sorted(each.sqnr_db for each in ranking)
    after = network.module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_more_layers_than_there_are_cannot_be_asked_for() -> None:
    ranking = sensitivities(tiny_network(), pictures()[1][:1])

    with pytest.raises(ExportError, match="--mixed 12: the network has 10 layers with weights"):
        most_sensitive(ranking, 12)
