"""Batches: the same whatever the workers, the processes, and where a run resumes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from detloom.data.loader import Batch, Loader, num_workers
from detloom.data.records import Annotations
from detloom.data.settings import AugmentSettings
from detloom.errors import DataError

SETTINGS = AugmentSettings(degrees=5, mixup=0.3)


def training(painted: Annotations, **changes: object) -> Loader:
    options: dict[str, object] = {"image_size": 64, "batch_size": 2, "augment": SETTINGS, "cache": "off", **changes}
    return Loader(painted, **options)  # type: ignore[arg-type]  # options of tests


def assert_same(a: Batch, b: Batch) -> None:
    assert a.indices == b.indices
    assert torch.equal(a.images_BCHW, b.images_BCHW)
    assert torch.equal(a.targets.boxes_T4, b.targets.boxes_T4)
    assert torch.equal(a.targets.labels_T, b.targets.labels_T)
    assert torch.equal(a.targets.image_T, b.targets.image_T)


def test_a_batch_is_uint8_with_channels_last(painted: Annotations) -> None:
    loader = training(painted)

    batch = next(loader.epoch(0))

    assert len(loader) == 3
    assert batch.images_BCHW.shape == (2, 3, 64, 64)
    assert batch.images_BCHW.dtype == torch.uint8
    assert batch.images_BCHW.is_contiguous(memory_format=torch.channels_last)
    assert batch.targets.image_size == (64, 64)
    assert batch.targets.num_images == 2


def test_an_epoch_shows_every_picture_once_in_an_order_of_its_own(painted: Annotations) -> None:
    loader = training(painted)

    orders = [[index for batch in loader.epoch(epoch) for index in batch.indices] for epoch in range(3)]

    assert all(sorted(order) == list(range(6)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3


def test_last_batch_is_filled_so_that_no_picture_is_left_out(painted: Annotations) -> None:
    loader = training(painted, batch_size=4)

    batches = list(loader.epoch(0))

    shown = [index for batch in batches for index in batch.indices]
    assert len(batches) == len(loader) == 2
    assert sorted(shown[:6]) == list(range(6))
    assert shown[6:] == shown[:2]


def test_epochs_and_seeds_differ_and_repeat(painted: Annotations) -> None:
    first = next(training(painted, seed=1).epoch(0))

    again = next(training(painted, seed=1).epoch(0))
    other_seed = next(training(painted, seed=2).epoch(0))
    other_epoch = next(training(painted, seed=1).epoch(1))

    assert_same(first, again)
    assert not torch.equal(first.images_BCHW, other_seed.images_BCHW)
    assert not torch.equal(first.images_BCHW, other_epoch.images_BCHW)


def test_global_randomness_is_neither_used_nor_moved(painted: Annotations) -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state(legacy=False)  # noqa: NPY002 - is tested

    first = list(training(painted).epoch(0))
    is_unmoved = torch.equal(torch_state, torch.get_rng_state())
    torch.manual_seed(9)
    second = list(training(painted).epoch(0))

    assert is_unmoved
    assert str(numpy_state) == str(np.random.get_state(legacy=False))  # noqa: NPY002 - is tested
    for a, b in zip(first, second, strict=True):
        assert_same(a, b)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("cache", ["off", "ram"])
def test_workers_change_nothing(painted: Annotations, workers: int, cache: str) -> None:
    alone = training(painted)
    helped = training(painted, workers=workers, cache=cache)

    for epoch in range(2):
        for a, b in zip(alone.epoch(epoch), helped.epoch(epoch), strict=True):
            assert_same(a, b)


def test_an_epoch_resumes_at_any_batch(painted: Annotations) -> None:
    whole = list(training(painted).epoch(4))

    rest = list(training(painted, workers=1).epoch(4, start_batch=1))

    assert len(rest) == 2
    for a, b in zip(whole[1:], rest, strict=True):
        assert_same(a, b)


def test_a_broken_off_epoch_does_not_disturb_the_next(painted: Annotations) -> None:
    loader = training(painted, workers=2)
    next(loader.epoch(0))

    batches = list(loader.epoch(1))

    for a, b in zip(training(painted).epoch(1), batches, strict=True):
        assert_same(a, b)


def test_two_processes_together_see_the_batches_of_one(painted: Annotations) -> None:
    settings = SETTINGS.model_copy(update={"multi_scale": 0.5})
    one = list(training(painted, batch_size=4, augment=settings).epoch(0))

    shares = [list(training(painted, batch_size=4, augment=settings, rank=rank, world=2).epoch(0)) for rank in (0, 1)]

    for whole, first, second in zip(one, *shares, strict=True):
        assert whole.indices == first.indices + second.indices
        assert torch.equal(whole.images_BCHW, torch.cat((first.images_BCHW, second.images_BCHW)))
        assert torch.equal(whole.targets.boxes_T4, torch.cat((first.targets.boxes_T4, second.targets.boxes_T4)))


def test_multi_scale_batches_vary_in_multiples_of_the_stride(painted: Annotations) -> None:
    loader = training(painted, image_size=128, augment=AugmentSettings(multi_scale=0.5))

    sizes = {batch.images_BCHW.shape[-1] for epoch in range(8) for batch in loader.epoch(epoch)}

    assert len(sizes) > 2
    assert sizes <= {64, 96, 128, 160, 192}


def test_a_set_smaller_than_a_batch_is_repeated(painted: Annotations) -> None:
    loader = training(painted, batch_size=8)

    batches = list(loader.epoch(0))

    assert len(batches) == len(loader) == 1
    assert len(batches[0].indices) == 8
    assert set(batches[0].indices) == set(range(6))


def test_the_last_epochs_are_without_mosaic(painted: Annotations) -> None:
    settings = AugmentSettings(mosaic_off_epochs=2, mosaic_nine=0.0, mixup=1.0, scale=0.0, translate=0.0)
    loader = training(painted, image_size=128, augment=settings, epochs=5)

    most = [max(batch.targets.most_per_image for batch in loader.epoch(epoch)) for epoch in range(5)]

    assert min(most[:3]) > 1
    assert max(most[3:]) == 1


def test_crowds_are_not_learned(painted: Annotations) -> None:
    images = tuple(replace(record, is_crowd_N=np.ones(1, np.bool_)) for record in painted.images)
    crowds = replace(painted, images=images)

    learned = next(training(crowds).epoch(0)).targets.num_targets
    measured = next(Loader(crowds, image_size=64, batch_size=6).epoch(0)).targets.num_targets

    assert learned == measured == 0


def test_evaluation_keeps_the_order_and_the_last_pictures(painted: Annotations) -> None:
    loader = Loader(painted, image_size=64, batch_size=4)

    batches = list(loader.epoch(0))

    assert [batch.indices for batch in batches] == [(0, 1, 2, 3), (4, 5)]
    assert all(batch.images_BCHW.shape[-2:] == (64, 64) for batch in batches)


def test_evaluation_boxes_return_to_the_pictures(painted: Annotations) -> None:
    batch = next(Loader(painted, image_size=96, batch_size=6).epoch(0))

    for slot, letterbox in enumerate(batch.letterboxes):
        boxes_N4 = letterbox.boxes_to_picture(batch.targets.boxes_T4[slot : slot + 1])
        np.testing.assert_allclose(boxes_N4.numpy(), painted.images[slot].boxes_N4, atol=1e-3)


def test_rectangular_batches_are_sorted_by_shape_and_as_small_as_they_can_be(painted: Annotations) -> None:
    loader = Loader(painted, image_size=128, batch_size=2, rectangular=True)

    batches = list(loader.epoch(0))

    assert sorted(index for batch in batches for index in batch.indices) == list(range(6))
    assert [tuple(batch.images_BCHW.shape[-2:]) for batch in batches] == [(96, 128), (128, 128), (128, 128)]


def test_processes_share_the_evaluation(painted: Annotations) -> None:
    shares = [Loader(painted, image_size=64, batch_size=4, rank=rank, world=3) for rank in range(3)]

    seen = [index for loader in shares for batch in loader.epoch(0) for index in batch.indices]

    assert sorted(seen) == list(range(6))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_picture_is_named_without_a_workers_traceback(painted: Annotations, workers: int) -> None:
    gone = replace(painted.images[0], path=painted.images[0].path.with_name("gone.png"))
    broken = replace(painted, images=(gone,))

    with pytest.raises(DataError, match=r"^\S*gone\.png: cannot be read"):
        list(training(broken, workers=workers).epoch(0))


def test_no_pictures_are_refused(painted: Annotations) -> None:
    with pytest.raises(DataError, match="there are no pictures to use"):
        training(replace(painted, images=()))


def test_sizes_must_fit_the_stride(painted: Annotations) -> None:
    with pytest.raises(DataError, match=r"100 x 100, but this detector needs multiples .* 32; the nearest is 96 x 96"):
        training(painted, image_size=100)


def test_a_batch_must_be_shared_evenly(painted: Annotations) -> None:
    with pytest.raises(DataError, match=r"\[train\] batch: 3 pictures .* among 2 processes; take a multiple of 2"):
        training(painted, batch_size=3, world=2)


def test_a_number_of_workers_is_taken_as_it_is_and_auto_leaves_a_core() -> None:
    assert num_workers(3, "cpu") == 3
    assert num_workers("auto", "cpu") == 0
    assert 0 <= num_workers("auto", "cuda") <= 8
    assert num_workers("auto", "cuda", world=1000) == 0
