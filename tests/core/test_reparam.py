from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from detloom.errors import PluginError
from detloom.interfaces import Fold, ReparamPass
from detloom.reparam import Difference, fold, replace_submodule_


class DropZero(ReparamPass):
    """Replace a layer named ``gone`` by nothing; right only where it did nothing."""

    def plan(self, model: nn.Module) -> list[Fold]:
        places = [path for path, module in model.named_modules() if path.endswith("gone") and list(module.parameters())]
        return [Fold(path, applies=True, reason="because") for path in places]

    def fold(self, module: nn.Module, fold: Fold) -> nn.Module:
        del module, fold
        return nn.Identity()


class Net(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.gone = nn.Linear(3, 3, bias=False)
        self.last = nn.ReLU(inplace=True)
        self.gone.weight.data = torch.eye(3) * scale

    def forward(self, x: Tensor) -> dict[str, list[Tensor]]:
        return {"levels": [self.last(self.gone(self.first(x))), x]}


def test_equal_form_is_reported_with_its_differences() -> None:
    model = Net(1.0)

    folded, report = fold(model, [DropZero()], example=torch.rand(2, 3))

    assert isinstance(folded.gone, nn.Identity)
    assert isinstance(model.gone, nn.Linear)
    assert [(each.by, each.fold.path) for each in report.folds] == [("DropZero", "gone")]
    assert [each.where for each in report.outputs] == ["output.levels.0", "output.levels.1"] * 2
    assert [(each.where, each.precision) for each in report.modules] == [("gone", "float64"), ("gone", "float32")]


def test_without_an_example_nothing_is_measured() -> None:
    folded, report = fold(Net(2.0), [DropZero()])

    assert isinstance(folded.gone, nn.Identity)
    assert not report.outputs
    assert not report.modules


def test_wrong_fold_is_refused_by_name() -> None:
    with pytest.raises(PluginError, match=r"the module gone: in float64 it differs by .* folded by DropZero"):
        fold(Net(1.001), [DropZero()], example=torch.rand(2, 3))


def test_what_only_float64_can_see_is_seen() -> None:
    with pytest.raises(PluginError, match="in float64"):
        fold(Net(1 + 1e-6), [DropZero()], example=torch.rand(2, 3))


def test_outputs_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(PluginError, match="differs by nan"):
        fold(Net(float("nan")), [DropZero()], example=torch.rand(2, 3))


def test_fold_that_the_example_does_not_run_is_refused_by_name() -> None:
    model = Net(1.0)
    model.add_module("unused", nn.Sequential())
    model.get_submodule("unused").add_module("gone", nn.Linear(3, 3))

    with pytest.raises(
        PluginError, match=r"not proved, because the example does not run them: unused\.gone\. .*DropZero"
    ):
        fold(model, [DropZero()], example=torch.rand(2, 3))


def test_fold_that_another_pass_takes_away_needs_no_proof() -> None:
    class DropUnused(ReparamPass):
        def plan(self, model: nn.Module) -> list[Fold]:
            return [Fold("", applies=True, reason="")] if list(model.get_submodule("unused").children()) else []

        def fold(self, module: nn.Module, fold: Fold) -> nn.Module:
            del fold
            module.unused = nn.Sequential()
            return module

    model = Net(1.0)
    model.add_module("unused", nn.Sequential())
    model.get_submodule("unused").add_module("gone", nn.Linear(3, 3))

    folded, _ = fold(model, [DropZero(), DropUnused()], example=torch.rand(2, 3))

    assert not list(folded.get_submodule("unused").children())


def test_module_that_is_run_by_its_parts_is_measured_in_the_module_around_it() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 3)

        def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.inner(x), x

    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gone = Pair()

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.gone.both(x)

    class Same(DropZero):
        def fold(self, module: nn.Module, fold: Fold) -> nn.Module:
            del fold
            return module

    _, report = fold(nn.Sequential(Around()), [Same()], example=torch.rand(2, 3))

    assert {each.where for each in report.modules} == {"0"}


class Opaque:
    """Something that holds tensors out of sight."""

    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden


class Giving(nn.Module):
    """A wrong fold's place, and an output to be given."""

    def __init__(self, output: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.gone = nn.Linear(3, 3)
        self.output = output

    def forward(self, x: Tensor) -> object:
        return self.output(self.gone(x))


@pytest.mark.parametrize(
    ("output", "complaint"),
    [
        (Opaque, "output is a Opaque, whose tensors cannot be found"),
        (lambda x: [x, {"more": Opaque(x)}], r"output\.1\.more is a Opaque"),
        (lambda _: None, "output holds no number to compare, it is output None"),
        (lambda _: [], "output holds no number to compare, it is nothing"),
        (lambda x: x[:0], r"output holds no number to compare, it is output \[0, 3\]"),
    ],
)
def test_output_in_which_nothing_can_be_compared_proves_nothing(
    output: Callable[[Tensor], object], complaint: str
) -> None:
    with pytest.raises(PluginError, match=f"nothing is proved: {complaint}"):
        fold(Giving(output), [DropZero()], example=torch.rand(2, 3))


def test_numbers_beside_tensors_are_compared_too() -> None:
    model = Giving(lambda x: (x * 0, float(x.detach().sum())))

    with pytest.raises(PluginError, match=r"folding changed the m"):
        fold(model, [DropZero()], example=torch.rand(2, 3))


def test_text_beside_tensors_must_stay_the_same() -> None:
    model = Giving(lambda x: (x * 0, "large" if x.max() > 5 else "small"))
    model.gone.weight.data *= 0
    model.gone.bias.data += 9

    with pytest.raises(PluginError, match=r"form of output: .*'large' became .*'small'"):
        fold(model, [DropZero()], example=torch.rand(2, 3))


def test_folded_model_that_cannot_run_names_the_passes() -> None:
    class Reader(Net):
        def forward(self, x: Tensor) -> dict[str, list[Tensor]]:
            return {"levels": [self.gone(x) * self.gone.weight.sum()]}

    with pytest.raises(PluginError, match=r"the model cannot be run: AttributeError: .*weight.* folded by DropZero"):
        fold(Reader(1.0), [DropZero()], example=torch.rand(2, 3))


def test_difference_that_no_module_shows_is_laid_to_all_passes() -> None:
    class Whole(DropZero):
        def plan(self, model: nn.Module) -> list[Fold]:
            return [Fold("", applies=True, reason="")] if isinstance(model, Net) else []

    with pytest.raises(PluginError, match=r"changed the model's output: .* It was folded by Whole\. "):
        fold(
            Net(1.0),
            [Whole()],
            example=torch.rand(2, 3),
            run=lambda model, x: x if list(model.children()) else x + 1,
        )


def test_folded_copy_is_in_evaluation_mode_and_the_model_in_its_own() -> None:
    model = Net(1.0).train()

    folded, _ = fold(model, [DropZero()], example=torch.rand(2, 3))

    assert not folded.training
    assert model.training


def test_any_run_may_be_compared() -> None:
    _, report = fold(Net(1.0), [DropZero()], example=torch.rand(2, 3), run=lambda model, x: model(x)["levels"][0])

    assert [each.where for each in report.outputs] == ["output", "output"]


def test_changed_form_is_refused() -> None:
    class Widen(DropZero):
        def fold(self, module: nn.Module, fold: Fold) -> nn.Module:
            del module, fold
            return nn.Linear(3, 4).double()

    with pytest.raises(PluginError, match=r"changed the form of .*\[2, 3\].* became .*\[2, 4\]"):
        fold(Net(1.0), [Widen()], example=torch.rand(2, 3), tolerances={torch.float64: 1e-9})


def test_difference_that_is_no_number_is_not_within() -> None:
    assert not Difference("x", "float64", float("nan"), float("nan"), 1.0).is_within


def test_model_itself_can_be_replaced() -> None:
    replacement = nn.Identity()

    assert replace_submodule_(nn.Sequential(nn.ReLU()), "", replacement) is replacement  # type: ignore[comparison-overlap] # another class on purpose


def test_small_values_among_large_ones_may_carry_the_rounding_of_these() -> None:
    class Large(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.tensor([1e4, 0.0])

    class Rounded(ReparamPass):
        def plan(self, model: nn.Module) -> list[Fold]:
            return [Fold("", applies=True, reason="")] if isinstance(model, Large) else []

        def fold(self, module: nn.Module, fold: Fold) -> nn.Module:
            del fold
            return nn.Sequential(module, Off(1e-3))

    class Off(nn.Module):
        def __init__(self, by: float) -> None:
            super().__init__()
            self.by = by

        def forward(self, x: Tensor) -> Tensor:
            return x + self.by

    _, report = fold(Large(), [Rounded()], example=torch.ones(1, 2), tolerances={torch.float32: 1e-4})

    (difference,) = report.outputs
    assert difference.relative == pytest.approx(1e-3 / (1 + 1e4 / 2**0.5), rel=1e-3)
