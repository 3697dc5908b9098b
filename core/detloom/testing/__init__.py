"""The conformance kit: what every component must do, as named checks that its author can run.

    @parametrize_with_checks(MyAssigner)
    def test_it_keeps_its_contract(check: Check) -> None:
        check()

The components that come with detloom pass the same checks. A check is a function whose name is a
sentence; where a component breaks it, the message says what to change.
"""

import inspect
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest import SkipTest

from detloom.errors import PluginError, suggest
from detloom.kinds import Kind

try:
    import hypothesis  # noqa: F401 - the modules below need it; without it they would say so in words of their own
except ImportError as error:
    raise PluginError(
        "detloom.testing draws batches with Hypothesis, which is not installed: pip install 'detloom[testing]'"
    ) from error

from detloom.testing import (
    anchor_searches,
    assigners,
    construction,
    criteria,
    datasets,
    emas,
    evaluators,
    exporters,
    heads,
    importers,
    networks,
    observers,
    reparams,
    scalings,
    searches,
)
from detloom.workshop import contracts

if TYPE_CHECKING:
    from pytest import MarkDecorator  # noqa: PT013 - a type alone; pytest need not be installed

__all__ = ["Check", "check_component", "checks_of", "parametrize_with_checks"]

CHECKS: Mapping[Kind, tuple[Callable[[construction.Build], None], ...]] = {
    Kind.BACKBONE: networks.BACKBONE_CHECKS,
    Kind.NECK: networks.NECK_CHECKS,
    Kind.HEAD: heads.CHECKS,
    Kind.ASSIGNER: assigners.CHECKS,
    Kind.CRITERION: criteria.CHECKS,
    Kind.REPARAM: reparams.CHECKS,
    Kind.EMA: emas.CHECKS,
    Kind.ANCHORS: anchor_searches.CHECKS,
    Kind.DATASET: datasets.CHECKS,
    Kind.EVALUATOR: evaluators.CHECKS,
    Kind.OBSERVER: observers.CHECKS,
    Kind.EXPORTER: exporters.CHECKS,
    Kind.IMPORTER: importers.CHECKS,
    Kind.SCALING: scalings.CHECKS,
    Kind.SEARCH: searches.CHECKS,
}
WITH_EXAMPLE = frozenset((*datasets.WITH_EXAMPLE, *reparams.WITH_EXAMPLE, *importers.WITH_EXAMPLE))


@dataclass(frozen=True, slots=True)
class Check:
    """One demand on one component; call it to run it.

    Attributes:
        component: The class's name, and its settings.
        name: The function's name, a sentence.
        reason: Why it is expected to fail, or nothing.
        lacks_example: Whether it works on an example of the author's, and there is none.
    """

    component: str
    name: str
    reason: str
    lacks_example: bool
    _run: Callable[[], None] = field(repr=False)
    _source: str = field(repr=False)

    @property
    def sentence(self) -> str:
        """Return the name in words."""
        return self.name.replace("_", " ")

    def __call__(self) -> None:
        """Run it.

        Raises:
            AssertionError: The component breaks it; says how, and what to change.
            SkipTest: It cannot be run here, as where packages are missing; pytest reports it as skipped.
        """
        try:
            self._run()
        except SkipTest:
            raise
        except AssertionError as error:
            raise AssertionError(f"{self.component}, {self.sentence}: {error}") from error
        except Exception as error:
            raised = f"raised {type(error).__name__}: {error}{_place(error, self._source)}"
            raise AssertionError(f"{self.component}, {self.sentence}: {raised}") from error


def checks_of(
    cls: type[Any],
    *,
    settings: Mapping[str, Any] | None = None,
    expected_failures: Mapping[str, str] | None = None,
    example: Callable[[], Any] | None = None,
) -> list[Check]:
    """Return the checks of a component's kind.

    Args:
        cls: The component.
        settings: Its keyword arguments, where it has some without defaults, or is to be checked with others. A neck
            or head must be one for three levels.
        expected_failures: Names of checks that it does not pass, each with the reason why it need not.
        example: What returns something to work on: for a reparam pass a model that it folds, which takes pictures
            ``[B, 3, 64, 64]``; for a dataset the path of one that it reads, with the split ``train``; for an importer a
            ``ForeignCheckpoint`` that it knows, and the recipe that this holds the weights of; for a search strategy
            that learns first, what its ``prepare`` returns for ``searches.CHOICES``.

    Raises:
        PluginError: The class is no component, its kind has no checks yet, it cannot be built with the settings,
            or an expected failure has no reason or is that of no check.
    """
    functions = CHECKS[_kind_of(cls)]
    reasons = dict(expected_failures or {})
    names = [function.__name__ for function in functions]
    for name, reason in reasons.items():
        if name not in names:
            raise PluginError(
                f"{cls.__name__}: expected_failures: no check is called '{name}'.{suggest(name, names)}\n"
                f"  checks: {', '.join(names)}"
            )
        if not reason.strip():
            raise PluginError(f"{cls.__name__}: expected_failures: '{name}' needs a reason: why may it fail?")
    _check_settings(cls, dict(settings or {}))
    build = construction.Build(cls, dict(settings or {}), example)
    label = _label(cls, dict(settings or {}))
    source = getattr(sys.modules.get(cls.__module__), "__file__", None) or ""
    return [
        Check(
            label,
            function.__name__,
            reasons.get(function.__name__, "").strip(),
            example is None and function in WITH_EXAMPLE,
            partial(function, build),
            source,
        )
        for function in functions
    ]


def check_component(
    cls: type[Any],
    *,
    settings: Mapping[str, Any] | None = None,
    expected_failures: Mapping[str, str] | None = None,
    example: Callable[[], Any] | None = None,
) -> None:
    """Run all checks of a component that can be run here; arguments are those of ``checks_of``.

    Raises:
        AssertionError: It breaks some, or passes one that is expected to fail; all are named.
        PluginError: See ``checks_of``.
    """
    complaints = []
    for check in checks_of(cls, settings=settings, expected_failures=expected_failures, example=example):
        try:
            check()
        except SkipTest:
            continue
        except AssertionError as error:
            if not check.reason:
                complaints.append(str(error))
        else:
            if check.reason:
                complaints.append(
                    f"{check.component}, {check.sentence}: passes, though it is expected to fail ({check.reason}); "
                    "take it out of expected_failures"
                )
    if complaints:
        raise AssertionError("\n".join(complaints))


def parametrize_with_checks(
    component: type[Any] | Iterable[Check],
    *,
    settings: Mapping[str, Any] | None = None,
    expected_failures: Mapping[str, str] | None = None,
    example: Callable[[], Any] | None = None,
) -> "MarkDecorator":
    """Return a pytest mark that runs a test with the argument ``check`` for each check.

    Expected failures are reported with their reasons; one that passes fails the test.

    Args:
        component: The class, or checks of several classes.
        settings: As for ``checks_of``.
        expected_failures: As for ``checks_of``.
        example: As for ``checks_of``.

    Raises:
        PluginError: See ``checks_of``.
    """
    import pytest

    if isinstance(component, type):
        checks = checks_of(component, settings=settings, expected_failures=expected_failures, example=example)
    elif any(each is not None for each in (settings, expected_failures, example)):
        raise PluginError(
            "parametrize_with_checks: settings, expected_failures and example belong to a class; give them to checks_of"
        )
    else:
        checks = list(component)
    return pytest.mark.parametrize(
        "check",
        [
            pytest.param(
                check,
                id=f"{check.component}: {check.sentence}",
                marks=[pytest.mark.xfail(reason=check.reason, raises=AssertionError, strict=True)]
                if check.reason
                else [],
            )
            for check in checks
        ],
    )


def _kind_of(cls: type[Any]) -> Kind:
    bases = contracts()
    kind = next((kind for kind, base in bases.items() if isinstance(cls, type) and issubclass(cls, base)), None)
    if kind is not None and kind in CHECKS:
        return kind
    having = ", ".join(bases[each].__name__ for each in CHECKS)
    what = "is no component" if kind is None else f"is of the kind {kind}, which has no checks yet"
    raise PluginError(f"{cls!r} {what}; the conformance kit has checks of classes that derive from {having}")


def _check_settings(cls: type[Any], settings: dict[str, Any]) -> None:
    parameters = inspect.signature(cls).parameters.values()
    keywords = [each for each in parameters if each.kind is inspect.Parameter.KEYWORD_ONLY]
    missing = [each.name for each in keywords if each.default is each.empty and each.name not in settings]
    unknown = sorted(set(settings).difference(each.name for each in keywords))
    if missing:
        raise PluginError(
            f"{cls.__name__}: {', '.join(missing)} has no default: give it with settings={{'{missing[0]}': ...}}"
        )
    if unknown:
        known = [each.name for each in keywords]
        raise PluginError(
            f"{cls.__name__}: settings: it has no setting '{unknown[0]}'.{suggest(unknown[0], known)} "
            f"It has: {', '.join(known) or 'none'}"
        )


def _place(error: Exception, source: str) -> str:
    """Return at which line of the component's own file an error arose, if it is known."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == source]
    return f" ({source}, line {lines[-1]})" if lines else ""


def _label(cls: type[Any], settings: dict[str, Any]) -> str:
    """Return the class with its settings, without the addresses of objects."""
    if not settings:
        return cls.__name__
    plain = (str, int, float, bool, list, tuple, dict, type(None))
    words = (f"{k}={v!r}" if isinstance(v, plain) else f"{k}={type(v).__name__}" for k, v in settings.items())
    return f"{cls.__name__}({', '.join(words)})"
