"""Run a search: ask the strategy for points, refuse what is impossible, train the others, keep what was found."""

import json
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from detloom.assembly import check, mistakes
from detloom.building import build
from detloom.detector import Detector
from detloom.errors import DataError, DetloomError, PluginError, RecipeError
from detloom.interfaces import SearchStrategy
from detloom.kinds import Kind
from detloom.plugin_source import digests_of
from detloom.recipe import Recipe, load_recipe
from detloom.search.directory import SearchDirectory
from detloom.search.figures import Figures, UnknownFigureError, in_digits
from detloom.search.ground import Ground, drawn_detector
from detloom.search.settings import AP, Search
from detloom.search.space import FRUITLESS, Point, State, Trial
from detloom.study.ablation import View, data_of
from detloom.study.cells import label_of, overrides_of
from detloom.study.executor import Executor, WorkItem
from detloom.study.work import train_task
from detloom.wording import shown
from detloom.workshop import workshop

__all__ = ["Task", "label"]


class Task:
    """A search with its recipe, data and strategy opened.

    Args:
        search: Its form is checked.

    Raises:
        RecipeError: The recipe cannot be used, or the strategy cannot search the space.
        DataError: The data cannot be used.
        ExportError: The target is none, or needs packages.
        PluginError: The file of a plugin cannot be used.
    """

    def __init__(self, search: Search) -> None:
        self.search = search
        where = f"{search.name}.toml"
        settings = search.settings
        try:
            self.base = load_recipe(settings.recipe, search.overrides, plugins=settings.plugins, scale=False)
        except RecipeError as error:
            raise RecipeError(f"{where}: {error}") from error
        if wrong := list(_wrong_options(search, self.base)):
            raise RecipeError("\n".join(wrong))
        first = self.recipe((0,) * len(search.space.choices))
        if first.data.holdout:
            raise RecipeError(
                f"{first.where('data', 'holdout')}: 'holdout' would measure trials on pictures of the training split; "
                'give the data a validation split of its own, and set "data.holdout" = 0.0 in [overrides]'
            )
        try:
            self.names: tuple[str, ...] = tuple(data_of(first, settings.data)[0].names)
        except DataError as error:
            raise DataError(f"{where}: data = {shown(settings.data)}: {error}") from error
        if search.proxy:
            self._check_proxy(first)
        self.figures = Figures(search, self.names, first.train.seed)
        self.strategy: SearchStrategy = build(Kind.SEARCH, search.strategy, search.space, where=f"{where} [search]")
        if objection := self.strategy.objection():
            raise RecipeError(f"{where} [search]: '{search.strategy['use']}' cannot search this space: {objection}")

    def _check_proxy(self, first: Recipe) -> None:
        """Refuse what [proxy] makes wrong, which would fail in each trial.

        Raises:
            RecipeError: The first point can be built without it, and not with it.
        """
        try:
            check(self.recipe((0,) * len(self.search.space.choices), is_final=True), num_classes=len(self.names))
        except RecipeError:
            return
        try:
            check(first, num_classes=len(self.names))
        except RecipeError as error:
            raise RecipeError(f"{self.search.name}.toml [proxy]: {error}") from error

    def recipe(self, point: Point, *, is_final: bool = False) -> Recipe:
        """Return the recipe of a point: as the search trains it, or as the winner is.

        Raises:
            RecipeError: It is impossible.
        """
        chosen = overrides_of(self.search.space.overrides(point))
        overrides = chosen if is_final else {**chosen, **overrides_of(self.search.proxy)}
        # A component before its settings, in whatever order the file has them.
        ordered = {key: overrides[key] for key in sorted(overrides, key=lambda key: key.count("."))}
        return load_recipe(self.base, ordered, scale=not is_final)

    def content(self) -> dict[str, Any]:
        """Return the search with its recipe, and what its plugins' files hold, so that no change goes unseen."""
        # What the recipe says counts, and not from where its file is seen.
        content = {**self.search.as_data(), "recipe": self.base.tables, "names": self.names}
        # More may be wanted of what was found, or at once; the trials that are known stay what they are.
        for changing in ("trials", "parallel"):
            del content[changing]
        return {**content, "plugins": digests_of(self.base.plugins)}

    def run(self, directory: SearchDirectory, *, view: View, executor: Executor) -> list[Trial]:
        """Do what is left to do of a search; its directory is open. Return all trials.

        Trials that were cut off go on where they were, and those that failed are tried again. One that fails is told
        and kept, and the others go on.

        Args:
            directory: Where the trials lie.
            view: Told of each point, and how many trials are done of those that there may be.
            executor: Who trains.

        Raises:
            RecipeError: The strategy cannot prepare for the space, or a figure is none of the target's.
            PluginError: The strategy does not keep its contract.
        """
        prepared = directory.prepared()
        is_new = not directory.strategy.exists()
        try:
            if prepared is None:
                directory.strategy.mkdir(exist_ok=True)
                with self._strategy_named():
                    found = self.strategy.prepare(self.ground(directory.strategy))
                prepared = self._plain(found)
                directory.keep_prepared(prepared)
            progress = _Progress(self, directory, prepared, view)
            while wave := progress.next_wave():
                progress.tell_begun(wave)
                # Closed on Ctrl-C, so that what is running is stopped at once.
                with closing(executor.run([self.item(trial, directory) for trial in wave])) as outcomes:
                    for outcome in outcomes:
                        progress.note(int(outcome.item.name.removeprefix("trial ")), outcome.error)
        except (PluginError, RecipeError):
            # What has found and learned nothing has not begun: its file or its plugin is to be mended.
            if is_new and not prepared and not directory.trials(self.search.space):
                directory.forget()
            raise
        return progress.trials

    def samples(self, count: int) -> list[Trial]:
        """Return some points of the space, the first one before others that are drawn, as far as they can be told."""
        generator = torch.Generator().manual_seed(self.search.settings.seed)
        counts = self.search.space.counts
        drawn = (tuple(int(torch.randint(each, (), generator=generator)) for each in counts) for _ in range(4 * count))
        points = dict.fromkeys(((0,) * len(counts), *drawn))
        return [self.measured(Trial(number, point, State.RUNNING)) for number, point in enumerate([*points][:count])]

    def measured(self, trial: Trial) -> Trial:
        """Return a trial with its figures, refused where `check` or a constraint does.

        The figures are those of the recipe that the point would win with.

        Raises:
            UnknownFigureError: What is asked for is no figure.
        """
        try:
            self.recipe(trial.point)
            figures, refusal = self.figures.of(self.recipe(trial.point, is_final=True))
        except UnknownFigureError:
            raise
        except DetloomError as error:
            return replace(trial, state=State.REFUSED, reason=str(error))
        trial = replace(trial, figures=figures)
        return replace(trial, state=State.REFUSED, reason=refusal) if refusal else trial

    def ground(self, folder: Path) -> Ground:
        """Return what a strategy may build and train on."""
        return Ground(self.recipe, self._detector, self.search.settings.data, folder, self.search.settings.seed)

    @contextmanager
    def _strategy_named(self) -> Iterator[None]:
        """Say of any error which strategy made it, and where."""
        try:
            yield
        except DetloomError:
            raise
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            source = getattr(sys.modules[type(self.strategy).__module__], "__file__", None)
            own = [frame for frame in frames if frame.filename == source]
            frame = (own or frames)[-1]
            raise PluginError(
                f"the strategy '{self.search.strategy['use']}' failed at {frame.filename}, line {frame.lineno}: "
                f"{type(error).__name__}: {error}"
            ) from error

    def propose(
        self, history: Sequence[Trial], prepared: Mapping[str, Any], generator: torch.Generator
    ) -> Point | None:
        """Return what the strategy proposes.

        Raises:
            PluginError: It is no point, or the strategy fails.
        """
        with self._strategy_named():
            point = self.strategy.propose(tuple(history), prepared, generator)
        if point is None:
            return None
        if complaint := self.search.space.complaint(point):
            name = self.search.strategy["use"]
            raise PluginError(f"the strategy '{name}' proposed something that is no point: {complaint}")
        return point

    def _plain(self, prepared: Any) -> dict[str, Any]:
        try:
            plain: dict[str, Any] = json.loads(json.dumps(prepared))
        except (TypeError, ValueError) as error:
            raise PluginError(
                f"the strategy '{self.search.strategy['use']}' prepared what JSON cannot hold: {error}; return "
                "numbers, texts, lists and mappings"
            ) from error
        return plain

    def _detector(self, point: Point) -> Detector:
        recipe = self.recipe(point)
        return drawn_detector(recipe, self.names, recipe.train.seed + self.search.settings.seed)

    def item(self, trial: Trial, directory: SearchDirectory) -> WorkItem:
        """Return the work of training a trial."""
        out = directory.run(trial.number)
        task = train_task(self.recipe(trial.point), data=self.search.settings.data, out=out, weights="last")
        return WorkItem(f"trial {trial.number}", task, directory.log(trial.number))


def _wrong_options(search: Search, base: Recipe) -> Iterator[str]:
    """Yield what is wrong with options that no point can have: misspelt names and settings, for the most part."""
    shop = workshop()
    components = {choice.key: choice.options for choice in search.space.choices}
    told = set()
    for choice in search.space.choices:
        section = choice.key.partition(".")[0]
        # A setting may be one of another component of its slot than the first.
        beside = components.get(section, ()) if section != choice.key else ()
        for option in choice.options:
            settings = [{section: each, choice.key: option} for each in beside] or [{choice.key: option}]
            found = [mistakes(base.with_overrides(overrides_of(each), "[space]"), shop) for each in settings]
            for complaint in found[0] if all(found) else ():
                # A misspelt key is wrong with each of its options.
                if complaint not in told:
                    told.add(complaint)
                    yield f"{search.name}.toml: {complaint}"


class _Progress:
    """The trials of a search as they are proposed and end, always kept."""

    def __init__(self, task: Task, directory: SearchDirectory, prepared: dict[str, Any], view: View) -> None:
        self._task = task
        self._directory = directory
        self._prepared = prepared
        self._view = view
        self._space = task.search.space
        self._known_as: dict[Point, str | None] = {}
        self.trials = [
            replace(trial, state=State.RUNNING, reason="") if trial.state == State.FAILED else trial
            for trial in directory.trials(task.search.space)
        ]

    def next_wave(self) -> list[Trial]:
        """Return the trials to train now: those that were cut off first; none where the search has ended."""
        if self._running:
            # Of a wave that was cut off: its points were proposed without the results of one another.
            return self._running
        fruitless = next((n for n, trial in enumerate(reversed(self.trials)) if trial.counts), len(self.trials))
        while self._has_room and fruitless < FRUITLESS:
            trial = self._proposed()
            if trial is None:
                break
            fruitless = 0 if trial.counts else fruitless + 1
            self.trials.append(trial)
            self._tell(trial)
            if not self._running:
                self._directory.keep_trials(self.trials)
        # What is to be trained is kept as a whole wave: proposed again in part, it would know more.
        self._directory.keep_trials(self.trials)
        if fruitless >= FRUITLESS:
            self._view(f"{FRUITLESS} proposals were refused or known, so the search ends", *self._counts)
        return self._running

    def tell_begun(self, wave: Sequence[Trial]) -> None:
        """Say what is trained now."""
        for trial in wave:
            text = f"training trial {trial.number} ({label(self._task.search, trial.point)})"
            self._view(f"{text}; its output: {self._directory.log(trial.number)}", *self._counts)

    def note(self, number: int, error: str) -> None:
        """Keep what became of a trial that was trained."""
        ap = self._directory.ap(number)
        trial = self.trials[number]
        if error or ap is None:
            error = error or f"the process left no result; its output: {self._directory.log(number)}"
            trial = replace(trial, state=State.FAILED, reason=error)
        else:
            trial = self._finished(replace(trial, figures={AP: ap, **trial.figures}))
        self.trials[number] = trial
        for again in self.trials:
            # What was proposed again while this one ran has its values from now on.
            if again.state == State.REPEATED and not again.values and self._are_one(again.point, trial.point):
                self.trials[again.number] = replace(again, values=trial.values, figures=trial.figures)
        self._directory.keep_trials(self.trials)
        self._tell(trial)

    @property
    def _running(self) -> list[Trial]:
        return [trial for trial in self.trials if trial.state == State.RUNNING]

    @property
    def _has_room(self) -> bool:
        counted = sum(trial.counts for trial in self.trials)
        return counted < self._space.trials and len(self._running) < self._task.search.settings.parallel

    @property
    def _counts(self) -> tuple[int, int]:
        done = sum(trial.counts and trial.state != State.RUNNING for trial in self.trials)
        return done, min(self._space.trials, self._space.size)

    def _proposed(self) -> Trial | None:
        """Return what the strategy proposes, as far as it can be told without training."""
        number = len(self.trials)
        seed = self._task.search.settings.seed * 1_000_003 + number
        generator = torch.Generator().manual_seed(seed)
        point = self._task.propose(self.trials, self._prepared, generator)
        if point is None:
            return None
        for before in self.trials:
            if self._are_one(before.point, point):
                reason = f"proposed before, as trial {before.number}"
                return replace(before, number=number, point=point, state=State.REPEATED, reason=reason)
        trial = self._task.measured(Trial(number, point, State.RUNNING))
        if trial.state == State.REFUSED or self._task.search.trains:
            return trial
        return self._finished(trial)

    def _are_one(self, point: Point, other: Point) -> bool:
        """Return whether two points are the same, or make the same recipes, as scalings do that are rounded alike."""
        if point == other:
            return True
        made = self._made(point)
        return made is not None and made == self._made(other)

    def _made(self, point: Point) -> str | None:
        """Return what a point comes to, or None where it is impossible."""
        if point not in self._known_as:
            try:
                recipes = (self._task.recipe(point), load_recipe(self._task.recipe(point, is_final=True)))
                self._known_as[point] = json.dumps([recipe.tables for recipe in recipes], sort_keys=True)
            except RecipeError:
                self._known_as[point] = None
        return self._known_as[point]

    def _finished(self, trial: Trial) -> Trial:
        values = tuple(trial.figures[each.name] for each in self._space.objectives)
        return replace(trial, state=State.FINISHED, values=values)

    def _tell(self, trial: Trial) -> None:
        if trial.state in (State.RUNNING, State.REPEATED):
            return
        values = ", ".join(f"{name} {in_digits(value)}" for name, value in trial.figures.items())
        what = trial.reason if trial.state in (State.REFUSED, State.FAILED) else values
        text = f"trial {trial.number} ({label(self._task.search, trial.point)}): {what.splitlines()[0]}"
        self._view(text if trial.state != State.REFUSED else f"refused: {text}", *self._counts)


def label(search: Search, point: Point) -> str:
    """Return a point in words."""
    return ", ".join(f"{key}={label_of(value)}" for key, value in search.space.overrides(point).items())
