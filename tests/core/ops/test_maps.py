import torch

from detloom.decode_spec import DecodeSpec
from detloom.ops.maps import whole_maps

SPEC: DecodeSpec = {
    "num_classes": 2,
    "levels": [{"stride": 8, "priors": [[8, 8], [16, 16]]}, {"stride": 16, "priors": [[32, 32]]}],
    "outputs": [
        {"name": "distances", "channels": 4},
        {"name": "objectness", "channels": 1},
        {"name": "classes", "channels": 2},
    ],
    "box": {"form": "distances", "bins": 1},
    "score": ["objectness", "classes"],
    "suppression": True,
}


def test_parts_of_a_level_are_put_together_prior_by_prior() -> None:
    spec: DecodeSpec = {
        **SPEC,
        "maps": [
            {"level": 1, "outputs": ["distances", "objectness", "classes"]},
            {"level": 0, "outputs": ["classes"]},
            {"level": 0, "outputs": ["distances", "objectness"]},
        ],
    }
    maps = [
        torch.arange(7.0).reshape(1, 7, 1, 1),
        torch.tensor([50.0, 60, 51, 61]).reshape(1, 4, 1, 1),
        torch.tensor([0.0, 10, 20, 30, 40, 1, 11, 21, 31, 41]).reshape(1, 10, 1, 1),
    ]

    fine, coarse = whole_maps(spec, maps)

    assert fine.flatten().tolist() == [0, 10, 20, 30, 40, 50, 60, 1, 11, 21, 31, 41, 51, 61]
    assert coarse.flatten().tolist() == list(range(7))


def test_whole_maps_stay_as_they_are() -> None:
    maps = (torch.rand(2, 14, 3, 2), torch.rand(2, 7, 2, 1))

    assert all(torch.equal(found, given) for found, given in zip(whole_maps(SPEC, maps), maps, strict=True))
