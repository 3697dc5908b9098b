"""A search from point to point, with an executor that trains nothing and knows what each point is worth."""

import json
import re
from collections.abc import Generator, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from detloom.cli import cli
from detloom.errors import ArtifactError, DataError, ExportError, PluginError, RecipeError
from detloom.recipe import load_recipe
from detloom.scenes import write_scenes
from detloom.search.directory import SearchDirectory
from detloom.search.front import best, front
from detloom.search.reporting import as_data, write_search
from detloom.search.running import Task
from detloom.search.settings import load_search
from detloom.search.space import FRUITLESS, State, Trial
from detloom.study.executor import LocalExecutor, Outcome, WorkItem

ROOT = Path(__file__).parents[3]

PLUGIN = '''
"""In order: each point after the other, the first of them twice."""

import torch

from detloom import hookimpl
from detloom.interfaces import SearchStrategy


class OrderedStrategy(SearchStrategy):
    """Proposes points in the order of counting."""

    def __init__(self, space, *, wrong: bool = False, again: bool = False):
        super().__init__(space)
        self.wrong, self.again = wrong, again

    def prepare(self, ground):
        (ground.folder / "learned.txt").touch()
        return {"parameters": sum(each.numel() for each in ground.build((0, 0)).parameters())}

    def propose(self, history, prepared, generator):
        assert prepared["parameters"] > 0
        if self.wrong:
            return (0,)
        number = 0 if self.again else max(0, len(history) - 1)
        if number >= self.space.size:
            return None
        return number // self.space.counts[1], number % self.space.counts[1]


@hookimpl
def register_components(register):
    register("ordered", OrderedStrategy)
'''
SEARCH = """
recipe = "yolov7-tiny"
data = {data}
trials = 4
objectives = ["AP", "gflops"]
plugins = ["strategy.py"]

[space]
"head.implicit" = [true, false]
"backbone.hidden" = [[8, 8, 8, 8], [16, 8, 8, 8], [8, 8, 8, 400]]

[constraints]
parameters = 100_000

[overrides]
"backbone.stem" = [[3, 2, 8], [3, 2, 8]]
"backbone.widths" = [8, 16, 16, 16]
"neck.hidden" = [8, 8, 8]
"neck.widths" = [8, 8, 8]
"neck.outputs" = [16, 16, 16]
"data.image_size" = 64

[search]
use = "ordered"

[proxy]
"train.epochs" = 1
"""


class Oracle:
    """An executor that writes what a run would be measured as; stops after some, and lets one fail."""

    def __init__(self, stops_after: int = 99, fails: Sequence[int] = ()) -> None:
        self.stops_after = stops_after
        self.fails = fails
        self.trained: list[int] = []

    def run(self, items: Iterable[WorkItem]) -> Generator[Outcome, None, None]:
        for item in items:
            if len(self.trained) == self.stops_after:
                raise KeyboardInterrupt
            number = int(item.name.removeprefix("trial "))
            self.trained.append(number)
            if number in self.fails:
                yield Outcome(item, "the loss is not finite")
                continue
            tables = item.task["recipe"]["tables"]
            ap = 0.5 + 0.1 * tables["head"]["implicit"] - tables["backbone"]["hidden"][0] / 100
            out = Path(item.task["out"])
            out.mkdir(parents=True)
            (out / "measured-last.json").write_text(json.dumps({"AP": ap}))
            yield Outcome(item)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("search")
    data = write_scenes(path / "data", train=2, val=2, unseen=0)
    (path / "strategy.py").write_text(PLUGIN, encoding="utf-8")
    (path / "small.toml").write_text(SEARCH.format(data=json.dumps(str(data))), encoding="utf-8")
    return path


def changed(folder: Path, *changes: tuple[str, str]) -> Task:
    text = (folder / "small.toml").read_text(encoding="utf-8")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (folder / "changed.toml").write_text(text, encoding="utf-8")
    return Task(load_search(folder / "changed.toml"))


def searched(task: Task, out: Path, oracle: Oracle | None = None, said: list[str] | None = None) -> list[Trial]:
    directory = SearchDirectory(out)
    directory.open(task.content())
    try:
        return task.run(
            directory, view=lambda text, *_: None if said is None else said.append(text), executor=oracle or Oracle()
        )
    finally:
        directory.close()


def test_points_are_refused_known_or_trained(folder: Path, tmp_path: Path) -> None:
    said: list[str] = []

    trials = searched(changed(folder), tmp_path, said=said)

    assert [trial.state for trial in trials] == [
        State.FINISHED,
        State.REPEATED,
        State.FINISHED,
        State.REFUSED,
        State.FINISHED,
        State.FINISHED,
    ]
    assert [trial.figures["AP"] for trial in trials if trial.values] == pytest.approx([0.52, 0.52, 0.44, 0.42, 0.34])
    assert "over the constraint of 100,000" in trials[3].reason
    assert [text for text in said if text.startswith("refused: trial 3 (head.implicit=true")]


def test_figures_are_those_of_check(folder: Path, tmp_path: Path) -> None:
    from detloom.assembly import check

    task = changed(folder)

    trials = searched(task, tmp_path)

    report = check(task.recipe((0, 1)), num_classes=len(task.names))
    assert trials[2].figures["parameters"] == report.deployed_parameters
    assert trials[2].values == pytest.approx((0.44, report.deployed_gflops))


@pytest.mark.parametrize(("stops_after", "parallel"), [(0, 1), (2, 1), (1, 2), (3, 2)])
def test_search_that_was_stopped_goes_on_to_the_same_trials(
    folder: Path, tmp_path: Path, stops_after: int, parallel: int
) -> None:
    # A strategy that asks what the trials before were worth.
    changes = ("trials = 4", f"trials = 4\nparallel = {parallel}"), ('"ordered"', '"evolution"\npopulation = 2')
    task = changed(folder, *changes)
    whole = searched(task, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        searched(task, tmp_path / "cut", Oracle(stops_after=stops_after))
    rest = Oracle()

    trials = searched(task, tmp_path / "cut", rest)

    assert trials == whole
    assert len(rest.trained) == 4 - stops_after


def test_trials_that_train_nothing_are_kept_one_by_one(folder: Path, tmp_path: Path) -> None:
    task = changed(folder, ('["AP", "gflops"]', '["naswot", "latency_ms"]'))
    directory = SearchDirectory(tmp_path)
    directory.open(task.content())

    def stop(_text: str, done: int, _total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        task.run(directory, view=stop, executor=Oracle())
    directory.close()
    kept = directory.trials(task.search.space)

    # The third is told before it is kept, and is found again.
    assert [trial.state for trial in kept] == [State.FINISHED, State.REPEATED, State.FINISHED, State.REFUSED]
    assert searched(task, tmp_path)[: len(kept)] == kept


def test_point_that_is_proposed_again_while_it_runs_has_its_values_in_the_end(folder: Path, tmp_path: Path) -> None:
    task = changed(folder, ("trials = 4", "trials = 4\nparallel = 2"))

    trials = searched(task, tmp_path)

    assert (trials[1].state, trials[1].point) == (State.REPEATED, trials[0].point)
    assert trials[1].values == trials[0].values != ()
    assert searched(task, tmp_path) == trials


def test_points_that_come_to_one_recipe_are_trained_once(folder: Path, tmp_path: Path) -> None:
    twins = '"head.implicit" = [true, false]', 'assigner = ["yolov7", { use = "yolov7" }]'
    oracle = Oracle()

    trials = searched(changed(folder, twins, ("trials = 4", "trials = 6")), tmp_path, oracle)

    finished = [trial for trial in trials if trial.state == State.FINISHED]
    again = [trial for trial in trials if trial.state == State.REPEATED]
    assert [trial.point for trial in finished] == [(0, 0), (0, 1)]
    assert [trial.point for trial in again] == [(0, 0), (1, 0), (1, 1), (1, 2)]
    assert [trial.values for trial in again] == [finished[0].values, finished[0].values, finished[1].values, ()]
    assert len(oracle.trained) == 2
    assert {trial.point[0] for trial in front(trials, changed(folder).search.space.objectives)} == {0}


def test_keys_in_another_order_are_another_search(folder: Path, tmp_path: Path) -> None:
    one, other = SEARCH.split("[space]\n")[1].splitlines()[:2]
    searched(changed(folder), tmp_path)

    with pytest.raises(ArtifactError, match="it differs in order"):
        searched(changed(folder, (f"{one}\n{other}", f"{other}\n{one}")), tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "complaint"),
    [
        ("trials.json", '[{"number": 0, "point": [9, 0]}]', "trials.json: .*'head.implicit' is one of 0 to 1; got 9"),
        ("trials.json", '[{"number": 4, "point": [0, 0]}]', "trials.json: .*trial 4 is in the place of trial 0"),
        ("trials.json", "{", "trials.json: cannot be read"),
        ("prepared.json", "[]", "prepared.json: this is not what a strategy learned"),
        ("trials/0000/run/measured-last.json", "{}", "measured-last.json: .* remove the file"),
    ],
)
def test_files_that_hold_something_else_are_told(
    folder: Path, tmp_path: Path, file: str, content: str, complaint: str
) -> None:
    with pytest.raises(KeyboardInterrupt):
        searched(changed(folder), tmp_path, Oracle(stops_after=0))
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(content)

    with pytest.raises(ArtifactError, match=complaint):
        searched(changed(folder), tmp_path, Oracle(fails=[0]))


def test_search_that_is_stopped_leaves_a_report_of_what_it_found(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    oracle = Oracle(stops_after=2)
    monkeypatch.setattr("detloom.study.executor.LocalExecutor.run", lambda _self, items: oracle.run(items))

    result = CliRunner().invoke(cli, ["search", str(folder / "small.toml"), "-o", str(tmp_path / "out")])

    assert result.exit_code == 130
    assert "what was found until now" in result.output
    assert "the same command goes on" in result.output
    assert load_recipe(tmp_path / "out" / "best.toml").tables["backbone"]["hidden"] == [8, 8, 8, 8]


def test_more_jobs_than_points_at_once_are_told(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = []

    def run(self: LocalExecutor, items: Iterable[WorkItem]) -> Generator[Outcome, None, None]:
        jobs.append(self.jobs)
        return Oracle().run(items)

    monkeypatch.setattr(LocalExecutor, "run", run)

    result = CliRunner().invoke(cli, ["search", str(folder / "small.toml"), "-o", str(tmp_path / "out"), "--jobs", "4"])

    assert "proposes 1 at once; more with `parallel = 4`" in result.output
    assert set(jobs) == {1}


def test_finished_search_trains_nothing_more(folder: Path, tmp_path: Path) -> None:
    task, again = changed(folder), Oracle()
    whole = searched(task, tmp_path)

    assert searched(task, tmp_path, again) == whole
    assert again.trained == []


def test_trial_that_fails_is_kept_with_its_reason_and_the_others_go_on(folder: Path, tmp_path: Path) -> None:
    trials = searched(changed(folder), tmp_path, Oracle(fails=[2]))

    assert (trials[2].state, trials[2].reason) == (State.FAILED, "the loss is not finite")
    assert sum(trial.state == State.FINISHED for trial in trials) == 3

    again = Oracle()
    assert {trial.state for trial in searched(changed(folder), tmp_path, again)} >= {State.FINISHED, State.REFUSED}
    assert again.trained == [2]


def test_strategy_that_proposes_known_points_for_ever_ends(folder: Path, tmp_path: Path) -> None:
    said: list[str] = []

    trials = searched(changed(folder, ('"ordered"', '"ordered"\nagain = true')), tmp_path, said=said)

    assert len(trials) == 1 + FRUITLESS
    assert "the search ends" in said[-1]


def test_proposal_that_is_no_point_is_told(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"'ordered' proposed something that is no point: .* tuple of 2 places"):
        searched(changed(folder, ('"ordered"', '"ordered"\nwrong = true')), tmp_path)


def test_option_that_no_point_can_have_is_a_mistake(folder: Path) -> None:
    with pytest.raises(RecipeError, match=r"\[space\] \[backbone\]: .*'hiden'"):
        changed(folder, ('"backbone.hidden"', '"backbone.hiden"'))


def test_figure_that_nobody_gives_is_told_at_once(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no figure is called 'flops'. Did you mean 'gflops'\?"):
        changed(folder, ("parameters = 100_000", "flops = 1"))
    changes = ("trials = 4", 'trials = 4\ntarget = "ethos-u55-256"'), ("parameters = 100_000", "sram_kb = 1")
    with pytest.raises(RecipeError, match=r"preflight for 'ethos-u55-256' has no figure 'sram_kb'. Did you mean"):
        searched(changed(folder, *changes), tmp_path)


def test_figures_are_of_the_recipe_that_would_win(folder: Path) -> None:
    (plain,) = changed(folder).samples(1)
    (cheap,) = changed(folder, ('"train.epochs" = 1', '"train.epochs" = 1\n"data.image_size" = 128')).samples(1)

    assert cheap.figures == plain.figures


def test_setting_may_stand_before_its_component(folder: Path) -> None:
    task = changed(
        folder, ('"head.implicit"', '"assigner.candidates" = [9, 12]\nassigner = ["paa", "atss"]\n"head.implicit"')
    )

    assert task.recipe((1, 0, 0, 0)).tables["assigner"] == {"use": "paa", "candidates": 12}


def test_figures_of_a_chip_hold_points_down(folder: Path, tmp_path: Path) -> None:
    changes = ("trials = 4", 'trials = 1\ntarget = "ethos-u55-256"'), ("parameters = 100_000", "sram_kib = 1")

    trials = searched(changed(folder, *changes), tmp_path)

    assert {trial.state for trial in trials} == {State.REFUSED, State.REPEATED}
    assert trials[0].figures["sram_kib"] > 1


def test_target_that_is_none_is_told(folder: Path) -> None:
    with pytest.raises(ExportError, match=r"changed\.toml: target = ethos-u99: no exporter and no device"):
        changed(folder, ("trials = 4", 'trials = 4\ntarget = "ethos-u99"'))


@pytest.mark.parametrize("score", ["synflow", "naswot"])
def test_zero_cost_scores_need_no_training(folder: Path, tmp_path: Path, score: str) -> None:
    oracle = Oracle()

    trials = searched(changed(folder, ('["AP", "gflops"]', f'["{score}"]')), tmp_path, oracle)

    assert oracle.trained == []
    assert sum(trial.state == State.FINISHED for trial in trials) == 4
    assert len({trial.values for trial in trials if trial.state == State.FINISHED}) > 1


def test_winner_is_an_ordinary_recipe_without_the_proxy(folder: Path, tmp_path: Path) -> None:
    task = changed(folder)
    trials = searched(task, tmp_path)

    write_search(task, trials, tmp_path)

    winner, base = load_recipe(tmp_path / "best.toml"), load_recipe("yolov7-tiny")
    assert winner.tables["backbone"]["hidden"] == [8, 8, 8, 8]
    assert winner.tables["head"]["implicit"] is True
    assert winner.train.epochs == base.train.epochs
    chosen = best(trials, task.search.space.objectives)
    assert chosen is not None
    assert as_data(task, trials)["front"] == [chosen.number]
    assert re.search(
        r"The front's hypervolume is 0\.0\d+, over AP 0, gflops 0\.\d+\.", (tmp_path / "report.md").read_text()
    )
    assert [path.name for path in (tmp_path / "front").iterdir()] == [f"trial-{chosen.number:04}.toml"]


def test_changed_search_is_refused_and_says_in_what_it_differs(folder: Path, tmp_path: Path) -> None:
    searched(changed(folder), tmp_path)

    with pytest.raises(ArtifactError, match=r"another search was begun here; it differs in seed \(0, now 1\)"):
        searched(changed(folder, ("trials = 4", "trials = 4\nseed = 1")), tmp_path)


def test_search_that_has_ended_goes_on_with_more_trials(folder: Path, tmp_path: Path) -> None:
    oracle = Oracle()
    first = searched(changed(folder, ("trials = 4", "trials = 2")), tmp_path, oracle)

    more = searched(changed(folder), tmp_path, oracle)

    assert more[: len(first)] == first
    assert more == searched(changed(folder), tmp_path / "whole")
    assert len(oracle.trained) == 4


def test_search_that_cannot_be_prepared_leaves_room_for_the_mended_one(folder: Path, tmp_path: Path) -> None:
    # The widths between blocks are seen all over a network.
    widths = '"head.implicit" = [true, false]', '"neck.outputs" = [[16, 16, 16], [8, 16, 16]]'
    own = '"neck.outputs" = [16, 16, 16]\n', ""
    with pytest.raises(RecipeError, match="outputs"):
        searched(changed(folder, ('"ordered"', '"gradient"'), own, widths), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]

    assert searched(changed(folder), tmp_path)


def test_strategy_that_fails_is_told_with_its_line(folder: Path, tmp_path: Path) -> None:
    # What fails is torch, where the strategy calls it.
    text = PLUGIN.replace('register("ordered"', 'register("failing"')
    text = text.replace("number = 0 if", "number = torch.zeros(2).item() if")
    (folder / "failing.py").write_text(text, encoding="utf-8")
    line = text[: text.index(".item()")].count("\n") + 1
    changes = ("strategy.py", "failing.py"), ('"ordered"', '"failing"\nagain = true')

    with pytest.raises(PluginError, match=rf"'failing' failed at .*failing\.py, line {line}: RuntimeError"):
        searched(changed(folder, *changes), tmp_path)


@pytest.mark.parametrize("is_cut", [False, True])
def test_strategy_that_cannot_prepare_leaves_room_and_what_an_interrupted_one_has_learned(
    folder: Path, tmp_path: Path, is_cut: bool
) -> None:
    text = PLUGIN.replace('register("ordered"', 'register("moody"').replace(
        "return {", "raise RuntimeError\n        return {"
    )
    (folder / "moody.py").write_text(text, encoding="utf-8")
    task = changed(folder, ("strategy.py", "moody.py"), ('"ordered"', '"moody"'))
    directory = SearchDirectory(tmp_path)
    if is_cut:
        # A preparation that was stopped has left its record and its folder.
        directory.open(task.content())
        directory.close()
        directory.strategy.mkdir()
        (directory.strategy / "cut").touch()

    with pytest.raises(PluginError, match="'moody' failed at"):
        searched(task, tmp_path)

    assert {path.name for path in tmp_path.iterdir()} == ({".lock", "search.json", "strategy"} if is_cut else {".lock"})


def test_point_that_repeats_one_that_fails_has_its_values_once_that_succeeds(folder: Path, tmp_path: Path) -> None:
    task = changed(folder, ("trials = 4", "trials = 4\nparallel = 2"))

    failed = searched(task, tmp_path, Oracle(fails=[0]))
    again = searched(task, tmp_path)

    assert (failed[0].state, failed[1].state, failed[1].values) == (State.FAILED, State.REPEATED, ())
    assert again[1].values == again[0].values != ()


def test_search_of_which_all_points_are_refused_ends_with_1_and_says_how_far_they_are(
    folder: Path, tmp_path: Path
) -> None:
    changed(folder, ("parameters = 100_000", "parameters = 10"))

    result = CliRunner().invoke(cli, ["search", str(folder / "changed.toml"), "-o", str(tmp_path)])

    assert result.exit_code == 1
    assert re.search(r"Nothing was found; the lowest parameters was [\d,]+;", result.output)


def test_data_that_is_not_there_is_told_with_the_file(folder: Path) -> None:
    data = json.dumps(str(folder / "data"))

    with pytest.raises(DataError, match=r'changed\.toml: data = "nowhere": '):
        changed(folder, (data, '"nowhere"'))


def test_proxy_that_no_trial_can_have_is_told_before_the_first(folder: Path) -> None:
    with pytest.raises(RecipeError, match=r"changed\.toml \[proxy\]: .*'init_from' is none.safetensors: there is no"):
        changed(folder, ('"train.epochs" = 1', '"train.epochs" = 1\n"train.init_from" = "none.safetensors"'))


def test_key_that_is_misspelt_is_told_once(folder: Path) -> None:
    with pytest.raises(RecipeError) as told:
        changed(folder, ('"backbone.hidden"', '"backbone.hiden"'))

    assert str(told.value).count("'hiden'") == 1


def test_directory_of_something_else_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()

    with pytest.raises(ArtifactError, match=r"no directory of a search: it holds notes\.txt"):
        searched(changed(folder), tmp_path)


def test_dry_run_shows_points_and_makes_nothing(folder: Path, tmp_path: Path) -> None:
    arguments = ["search", str(folder / "small.toml"), "-o", str(tmp_path / "none"), "--dry-run", "--json"]

    result = CliRunner().invoke(cli, arguments)

    assert result.exit_code == 0, result.output
    content: dict[str, Any] = json.loads(result.stdout)
    assert (content["points"], content["trials"]) == (6, 4)
    assert content["samples"][0]["overrides"] == {"head.implicit": True, "backbone.hidden": [8, 8, 8, 8]}
    assert [each for each in content["samples"] if "over the constraint" in each["refused"]]
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_points_are_trained_as_ordinary_runs(folder: Path, tmp_path: Path) -> None:
    changed(folder, ("trials = 4", "trials = 1"))
    text = (folder / "changed.toml").read_text() + '"train.batch" = 2\n"train.nominal_batch" = 2\n'
    (folder / "changed.toml").write_text(text)
    out = tmp_path / "out"

    result = CliRunner().invoke(cli, ["search", str(folder / "changed.toml"), "-o", str(out)])

    assert result.exit_code == 0, result.output
    measured = json.loads((out / "trials/0000/run/measured-last.json").read_text())
    assert json.loads((out / "report.json").read_text())["trials"][0]["figures"]["AP"] == measured["AP"]
    assert (out / "trials/0000/run/last.safetensors").exists()
    assert "next: detloom train" in result.output


def test_strategy_of_the_page_searches(folder: Path, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "search.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    (folder / "coordinate.py").write_text(code, encoding="utf-8")

    trials = searched(changed(folder, ("strategy.py", "coordinate.py"), ('"ordered"', '"coordinate"')), tmp_path)

    # All of the first choice, then of the second beside the best of the first.
    assert [trial.point for trial in trials] == [(0, 0), (1, 0), (0, 1), (0, 2)]


@pytest.mark.parametrize("path", sorted((ROOT / "examples" / "searches").glob("*.toml")), ids=lambda path: path.stem)
def test_searches_of_the_examples_can_be_begun(folder: Path, path: Path) -> None:
    search = load_search(path)
    search = replace(search, settings=search.settings.model_copy(update={"data": str(folder / "data")}))

    # The last point is the largest.
    last = Trial(0, tuple(count - 1 for count in search.space.counts), State.RUNNING)

    assert Task(search).measured(last).state == State.RUNNING


def test_strategy_builds_the_same_weights_again_and_others_with_another_seed(folder: Path, tmp_path: Path) -> None:
    built = [
        changed(folder, ("trials = 4", f"trials = 4\nseed = {seed}")).ground(tmp_path).build((0, 0))
        for seed in (0, 0, 1)
    ]

    first, again, other = (next(detector.parameters()) for detector in built)

    assert torch.equal(first, again)
    assert not torch.equal(first, other)
