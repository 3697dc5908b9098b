"""Checks of re-parameterisation passes, on small networks and on the author's example.

Shape letters: B images, C channels, H and W rows and columns.
"""

from collections.abc import Callable, Iterator
from copy import deepcopy

import torch
from torch import Tensor, nn

from detloom.interfaces import Fold
from detloom.reparam import fold
from detloom.shapes import shapes_only
from detloom.testing.construction import Build, check_signature, demand

__all__ = ["CHECKS", "WITH_EXAMPLE"]

Named = tuple[str, nn.Module]


def settings_are_keyword_only_and_typed(build: Build) -> None:
    """A recipe's table is the keyword arguments of the class."""
    check_signature(build, ())


def example_is_folded_somewhere(build: Build) -> None:
    """A pass that never applies does nothing, and its other checks prove nothing."""
    applies = [place for _, model in _models(build) for place in build().plan(model) if place.applies]
    where = "the example" if build.example else "the kit's own networks"
    demand(
        applies,
        f"the plan applies nowhere in {where}; give example=..., a function that returns a model with what this pass "
        "folds, which takes pictures [B, 3, 64, 64]",
    )


def places_of_the_plan_are_there(build: Build) -> None:
    """A path or part that is not in the model is a mistake; a reason is told to the user."""
    for name, model in _models(build):
        paths = {path for path, _ in model.named_modules()}
        for place in build().plan(model):
            demand(place.path in paths, f"{name}: the plan names '{place.path}', which is no module of the model")
            inside = {f"{place.path}.{part}".strip(".") for part in place.parts}
            demand(inside <= paths, f"{name}: {place.path} has no part {sorted(inside - paths)}; parts are relative")
            demand(
                place.reason.strip(),
                f"{name}: {place.path or 'the model'} has no reason; say what is folded, or why not",
            )


def planning_changes_nothing(build: Build) -> None:
    """``detloom check`` plans and does not fold."""
    for name, model in _models(build):
        before, modules = deepcopy(model.state_dict()), [type(each) for each in model.modules()]
        build().plan(model)
        after = model.state_dict()
        same = before.keys() == after.keys() and all(torch.equal(before[each], after[each]) for each in before)
        demand(same, f"{name}: plan() changes weights; change them in fold() alone")
        demand([type(each) for each in model.modules()] == modules, f"{name}: plan() changes the model's modules")


def planning_needs_no_numbers(build: Build) -> None:
    """``detloom check`` plans on the meta device, and what is planned there is what is folded later."""
    for name, model in _models(build):
        wanted = _form(build().plan(model))
        with shapes_only():
            got = _form(build().plan(deepcopy(model).to("meta")))
        demand(got == wanted, f"{name}: on the meta device the plan is {got}, else {wanted}; read shapes, not values")


def folded_model_gives_the_same(build: Build) -> None:
    """Outputs, and those of each folded module, are held against the original in float64 and float32."""
    for name, model in _models(build):
        try:
            fold(model, [build()], example=_pictures())
        except Exception as error:
            raise AssertionError(f"{name}: {error}") from error


def nothing_is_left_to_fold_afterwards(build: Build) -> None:
    """A pass over a folded model does nothing."""
    for name, model in _models(build):
        folded, _ = fold(model, [build()])
        left = [place.path or "the model" for place in build().plan(folded) if place.applies]
        demand(
            not left, f"{name}: after folding the plan still applies to {', '.join(left)}; plan what is unfolded alone"
        )


def folding_gives_no_more_than_it_takes(build: Build) -> None:
    """The deployed form is the cheaper one: no more parameters and modules, nor others of another precision."""
    for name, model in _models(build):
        folded, report = fold(model, [build()])
        if not any(each.fold.applies for each in report.folds):
            continue
        numbers = [sum(each.numel() for each in net.state_dict().values()) for net in (model, folded)]
        demand(
            numbers[1] <= numbers[0],
            f"{name}: {numbers[0]} numbers became {numbers[1]}; take away what was folded into other weights",
        )
        types = {str(each.dtype) for each in folded.parameters()}
        demand(types <= {"torch.float32"}, f"{name}: weights of float32 became {sorted(types)}; convert them back")


CHECKS: tuple[Callable[[Build], None], ...] = (
    settings_are_keyword_only_and_typed,
    example_is_folded_somewhere,
    places_of_the_plan_are_there,
    planning_changes_nothing,
    planning_needs_no_numbers,
    folded_model_gives_the_same,
    nothing_is_left_to_fold_afterwards,
    folding_gives_no_more_than_it_takes,
)

WITH_EXAMPLE = (example_is_folded_somewhere,)
"""That which works on the author's example; the others have networks of their own beside it."""


class _ReadTwice(nn.Module):
    """The output of a convolution is normalised, and read by other code as well."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return the sum of both."""
        x_BCHW = self.conv(images_BCHW)
        sum_BCHW: Tensor = x_BCHW + torch.relu(self.norm(x_BCHW))
        return sum_BCHW


class _Shared(nn.Module):
    """A convolution with two norms, each for a use of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.first, self.second = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """Return both uses, one after the other."""
        x_BCHW: Tensor = self.second(self.conv(torch.relu(self.first(self.conv(images_BCHW)))))
        return x_BCHW


def _models(build: Build) -> Iterator[Named]:
    """Yield networks that are easily folded wrong, and the example; statistics are not those of a new network."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        own: list[Named] = [
            (
                "convolutions and norms",
                nn.Sequential(
                    nn.Conv2d(3, 4, 3, 2, 1, bias=False),
                    nn.BatchNorm2d(4),
                    nn.SiLU(),
                    nn.Conv2d(4, 6, 1, groups=2),
                    nn.BatchNorm2d(6),
                ),
            ),
            ("a convolution that is read twice", _ReadTwice()),
            ("a convolution that is used twice", _Shared()),
        ]
        if build.example:
            own.append(("the example", build.example()))
        for _, model in own:
            for module in model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):  # noqa: SLF001 - the class of all of them
                    for entry in (module.running_mean, module.running_var, module.weight, module.bias):
                        if entry is not None:
                            entry.data.uniform_(0.5, 1.5)
            model.eval()
    yield from own


def _pictures() -> Tensor:
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(4))


def _form(plan: list[Fold]) -> list[tuple[str, bool]]:
    return [(place.path, place.applies) for place in plan]
