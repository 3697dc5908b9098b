"""How the conformance kit is run: all checks at once, with pytest, with expected failures."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from detloom.errors import PluginError
from detloom.interfaces import Assigner
from detloom.plugin_source import load_plugin_file, read_plugin_file
from detloom.structures import Assignment, Predictions, Targets
from detloom.testing import Check, check_component, checks_of, parametrize_with_checks

DOCS = Path(__file__).parents[2] / "docs"


class FirstAssigner(Assigner):
    """Gives every target the first ``number`` priors, surely."""

    def __init__(self, *, number: int = 1) -> None:
        self.number = number

    @torch.no_grad()
    def assign(self, predictions: Predictions, targets: Targets) -> Assignment:
        del predictions
        target_M = torch.arange(targets.num_targets).repeat_interleave(self.number)
        prior_M = torch.arange(self.number).repeat(targets.num_targets)
        return Assignment(targets.image_T[target_M], prior_M, target_M, torch.ones(len(target_M)))


class IdleAssigner(FirstAssigner):
    """Gives no target a prior."""

    def __init__(self, *, number: int = 0) -> None:
        super().__init__(number=0 * number)


class SeveralAssigner(FirstAssigner):
    """Says that it is one-to-one, and is not; its setting is positional."""

    one_to_one = True

    def __init__(self, number: int = 2) -> None:
        super().__init__(number=number)


def test_all_failures_are_named_at_once() -> None:
    with pytest.raises(AssertionError) as caught_error:
        check_component(SeveralAssigner)

    lines = str(caught_error.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "SeveralAssigner, settings are keyword only and typed",
        "SeveralAssigner, one to one gives a target one prior at most",
    ]


def test_expected_failure_with_a_reason_is_let_pass() -> None:
    check_component(IdleAssigner, expected_failures={"ordinary_objects_are_learned": "on purpose"})


def test_expected_failure_that_passes_is_told() -> None:
    with pytest.raises(AssertionError, match=r"passes, though it is expected to fail \(it was so once\); take it out"):
        check_component(FirstAssigner, expected_failures={"nan_is_never_silent": "it was so once"})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"expected_failures": {"nan_is_never_silent": " "}}, "'nan_is_never_silent' needs a reason"),
        ({"expected_failures": {"nan_is_never_silnt": "so"}}, "Did you mean 'nan_is_never_silent'?"),
        ({"settings": {"numbr": 3}}, "it has no setting 'numbr'. Did you mean 'number'?"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(PluginError, match=re.escape(message)):
        checks_of(FirstAssigner, **arguments)


def test_setting_without_a_default_is_asked_for() -> None:
    class Wrapper(FirstAssigner):
        def __init__(self, *, inner: Assigner) -> None:
            super().__init__()
            self.inner = inner

    with pytest.raises(PluginError, match=r"Wrapper: inner has no default: give it with settings=\{'inner': \.\.\.\}"):
        checks_of(Wrapper)

    assert checks_of(Wrapper, settings={"inner": FirstAssigner()})[0].component == "Wrapper(inner=FirstAssigner)"


def test_class_that_is_no_component_is_refused() -> None:
    with pytest.raises(PluginError, match="is no component"):
        checks_of(dict)


def test_what_a_component_raises_is_told_with_the_line(tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "from detloom.interfaces import Assigner\n\nclass Mine(Assigner):\n"
        "    def assign(self, predictions, targets):\n        return predictions.prioors\n",
        encoding="utf-8",
    )
    cls = load_plugin_file(read_plugin_file(plugin)).Mine

    with pytest.raises(AssertionError, match=rf"no attribute 'prioors'.* \({re.escape(str(plugin))}, line 5\)"):
        next(check for check in checks_of(cls) if check.name == "ordinary_objects_are_learned")()


def test_marks_for_pytest_read_as_sentences_and_expect_failures_strictly() -> None:
    mark = parametrize_with_checks(
        IdleAssigner, settings={"number": 1}, expected_failures={"ordinary_objects_are_learned": "on purpose"}
    ).mark

    parameters = {each.id: each for each in mark.args[1]}
    (expected,) = parameters["IdleAssigner(number=1): ordinary objects are learned"].marks
    assert not parameters["IdleAssigner(number=1): nan is never silent"].marks
    assert expected.kwargs == {"reason": "on purpose", "raises": AssertionError, "strict": True}


def test_settings_of_no_class_are_refused() -> None:
    with pytest.raises(PluginError, match="belong to a class"):
        parametrize_with_checks(checks_of(FirstAssigner), settings={})


def test_the_page_on_plugins_shows_what_works() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", (DOCS / "plugins.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "plugins.md", "exec"), names)  # noqa: S102 - our own document
    (mark,) = names["test_it_keeps_its_contract"].pytestmark
    parameters = mark.args[1]

    for parameter in parameters:
        check: Check = parameter.values[0]
        if check.reason:
            with pytest.raises(AssertionError):
                check()
        else:
            check()

    assert "NothingAssigner(quality=0.5): equal objects are served" in [parameter.id for parameter in parameters]
