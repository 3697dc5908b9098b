"""New batch norm statistics, against a plain computation."""

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from detloom.assembly import assemble
from detloom.data.loader import Loader
from detloom.data.splits import open_splits
from detloom.engine.statistics import renew_statistics_, training_pictures
from detloom.errors import DataError
from detloom.interfaces import Metrics
from detloom.recipe import load_recipe
from detloom.scenes import write_scenes
from detloom_plugins.swa import SwaEma


class Branches(nn.Module):
    """Two norms after one another with dropout between, and one that is never run."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm2d(3, momentum=0.03)
        self.dropout = nn.Dropout(0.5)
        self.second = nn.BatchNorm2d(3)
        self.unused = nn.BatchNorm2d(3)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Run two of the three."""
        levels_BCHW: Tensor = self.second(self.dropout(self.first(images_BCHW).relu()))
        return levels_BCHW


def pictures() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(size, 3, 5, 4, generator=generator) for size in (4, 4, 2)]


def test_statistics_are_the_mean_of_batches_by_their_pictures() -> None:
    model = Branches().eval()
    model.first.running_mean = torch.tensor([5.0, 6, 7])
    expected = [torch.zeros(3, dtype=torch.float64) for _ in range(4)]
    for batch in pictures():
        share = len(batch) / 10
        level = batch.double()
        for place in (0, 2):
            mean, biased = level.mean((0, 2, 3)), level.var((0, 2, 3), unbiased=False)
            expected[place] += share * mean
            expected[place + 1] += share * level.var((0, 2, 3), unbiased=True)
            level = ((level - mean[:, None, None]) / (biased + 1e-5).sqrt()[:, None, None]).relu()

    assert renew_statistics_(model, pictures()) == 10

    found = (model.first.running_mean, model.first.running_var, model.second.running_mean, model.second.running_var)
    for entry, value in zip(found, expected, strict=True):
        assert entry is not None
        torch.testing.assert_close(entry.double(), value, rtol=1e-5, atol=1e-6)


def test_norm_that_levels_share_has_the_statistics_of_all_of_them() -> None:
    class Levels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, images_BCHW: Tensor) -> Tensor:
            mean: Tensor = self.norm(images_BCHW).mean() + self.norm(images_BCHW[..., ::2] + 10).mean()
            return mean

    model = Levels()
    means = [torch.cat([batch.mean((2, 3)), batch[..., ::2].mean((2, 3)) + 10]) for batch in pictures()]

    renew_statistics_(model, pictures())

    assert model.norm.running_mean is not None
    torch.testing.assert_close(model.norm.running_mean, torch.cat(means).mean(0))


def test_norm_with_dropout_inside_that_is_called_by_name_has_the_same_statistics_again() -> None:
    class Inside(nn.BatchNorm2d):
        def __init__(self) -> None:
            super().__init__(3)
            self.drop = nn.Dropout(0.5)

        def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name that torch gives it
            dropped: Tensor = self.drop(super().forward(input))
            return dropped

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Inside(), nn.BatchNorm2d(3)

        def forward(self, images_BCHW: Tensor) -> Tensor:
            level_BCHW: Tensor = self.second(self.first(input=images_BCHW))
            return level_BCHW

    model, found = Named(), []
    for _ in range(2):
        renew_statistics_(model, pictures())
        assert model.second.running_var is not None
        found.append(model.second.running_var.clone())

    assert torch.equal(*found)


def test_what_is_not_run_or_kept_has_its_own_statistics_and_modes_return() -> None:
    model = Branches().eval()
    model.second.train()
    for norm in (model.first, model.unused):
        assert norm.running_mean is not None
        norm.running_mean.fill_(3)

    renew_statistics_(model, pictures(), keep=["first"])

    for norm in (model.first, model.unused):
        assert norm.running_mean is not None
        assert norm.running_mean.tolist() == [3, 3, 3]
    assert [module.training for module in model.children()] == [False, False, True, False]
    assert model.first.momentum == 0.03


def test_auxiliary_norms_get_statistics_too(tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", train=3, val=1)
    recipe = load_recipe(
        "yolov7-tiny",
        {"data.image_size": 64, "data.workers": 0, "train.batch": 2, "neck.auxiliary": [16, 16, 16]},
    )
    train, _ = open_splits(tmp_path / "scenes", recipe.data)
    detector = assemble(recipe, names=train.names).eval()

    # The last of three pictures is not alone in its batch: the first one comes once more.
    assert renew_statistics_(detector, training_pictures(detector, train, recipe)) == 4

    norms = [module for module in detector.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(norm.num_batches_tracked == 2 for norm in norms)


def test_pictures_are_the_same_each_time_and_no_more_than_asked_for(tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", train=5, val=1)
    recipe = load_recipe("yolov7-tiny", {"data.image_size": 64, "data.workers": 0, "train.batch": 2})
    train, _ = open_splits(tmp_path / "scenes", recipe.data)
    detector = assemble(recipe, names=train.names)
    seen: list[tuple[int, int]] = []

    once, again = (
        torch.cat(list(training_pictures(detector, train, recipe, most=4, progress=lambda *done: seen.append(done))))
        for _ in range(2)
    )

    assert once.shape == (4, 3, 64, 64)
    assert torch.equal(once, again)
    assert seen[:2] == [(1, 2), (2, 2)]
    with pytest.raises(DataError, match="at least 2 training pictures"):
        list(training_pictures(detector, train, recipe, most=1))


@pytest.mark.parametrize("off", [0, 1])
def test_pictures_are_those_of_the_last_epoch_of_training(tmp_path: Path, off: int) -> None:
    write_scenes(tmp_path / "scenes", train=4, val=1)
    augment = {"augment.mosaic": 1.0, "augment.mosaic_off_epochs": off}
    training = {"data.workers": 0, "train.batch": 2, "train.epochs": 3, "train.seed": 7}
    recipe = load_recipe("yolov7-tiny", {"data.image_size": 64, **training, **augment})
    train, _ = open_splits(tmp_path / "scenes", recipe.data)
    detector = assemble(recipe, names=train.names)
    order = np.random.default_rng(7).permutation(4)
    loader = Loader(
        replace(train, images=tuple(train.images[place] for place in order)),
        image_size=64,
        batch_size=2,
        augment=recipe.augment,
        seed=7,
        epochs=3,
    )

    shown = torch.cat(list(training_pictures(detector, train, recipe)))

    last, before = (torch.cat([batch.images_BCHW for batch in loader.epoch(epoch)]).float() / 255 for epoch in (2, 1))
    assert torch.equal(shown, last)
    assert not torch.equal(shown, before)


def test_training_renews_statistics_once_several_steps_are_averaged(stand_in: ModuleType, tmp_path: Path) -> None:
    calls: list[str] = []

    def measured(model: nn.Module) -> Metrics:
        calls.append("measured")
        metrics: Metrics = stand_in.measure(model)
        return metrics

    training, _ = stand_in.begin(
        tmp_path / "run",
        make_ema=lambda model: SwaEma(model, start=4),
        evaluate=measured,
        renew_statistics=lambda _: calls.append("renewed"),
    )

    training.train()

    # Three epochs of three steps.
    assert calls == ["measured", "renewed", "measured", "renewed", "measured"]
