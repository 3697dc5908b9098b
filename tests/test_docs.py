"""What the documents say is so: tables, hooks, links, code, commands."""

import ast
import importlib.util
import inspect
import re
import shlex
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import click
import pytest
import torch
from click.testing import CliRunner

from detloom.assembly import assemble
from detloom.catalogue import bundled_rows
from detloom.cli import VERBS, cli
from detloom.data.reading import SUFFIXES
from detloom.hookspecs import PluginHooks, RunHooks
from detloom.kinds import Kind
from detloom.recipe import load_recipe
from detloom.scenes import write_scenes
from detloom.structures import Detections, Predictions, Priors, Targets
from detloom.study.cells import checked_cells
from detloom.study.settings import load_study
from detloom.testing import CHECKS
from detloom.workshop import workshop

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
        *DOCS.rglob("*.md"),
        *(ROOT / "examples").rglob("*.md"),
    ]
)
IDS = [str(page.relative_to(ROOT)) for page in PAGES]
ASSIGNMENT = DOCS / "assignment.md"
SIZE = (128, 128)
TARGETS = Targets.from_lists(
    [torch.tensor([[20.0, 20.0, 60.0, 80.0], [70.0, 10.0, 110.0, 50.0]]), torch.tensor([[5.0, 60.0, 100.0, 120.0]])],
    [torch.tensor([0, 1]), torch.tensor([2])],
    SIZE,
)


def blocks(page: Path, language: str) -> list[str]:
    """Return the fenced code of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[str]:
    """Return the ``detloom`` command lines of indented blocks, without comments."""
    lines = re.findall(r"^ {4}(detloom .*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return [line.split("  #")[0].strip() for line in lines]


def rows_with_marks(page: Path, heading: str) -> list[list[str]]:
    """Return the cells of the first table below a heading, without its two lines of head."""
    below = page.read_text(encoding="utf-8").split(f"\n## {heading}\n")[1]
    table = re.search(r"(?:^\|.*\n)+", below, flags=re.MULTILINE)
    assert table is not None
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table[0].splitlines()[2:]]


def anchors(page: Path) -> set[str]:
    """Return the names that a page's headings are linked by."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def load_tables() -> ModuleType:
    """Return ``docs/tables.py``, which is no part of a package."""
    spec = importlib.util.spec_from_file_location("tables", DOCS / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_tables_of_components_are_those_of_the_catalogue() -> None:
    stale = [
        str(path.relative_to(ROOT))
        for path, text in load_tables().pages().items()
        if path.read_text(encoding="utf-8") != text
    ]

    assert stale == [], "run `python docs/tables.py`"


def test_every_check_of_the_kit_has_a_mistake_that_shows_what_it_is_for() -> None:
    mistakes = {kind: set(wrong) for kind, wrong in load_tables().mistakes().items()}

    assert mistakes == {kind: {check.__name__ for check in checks} for kind, checks in CHECKS.items()}


def test_every_row_of_the_catalogue_is_in_the_readme_and_has_a_heading_and_a_source() -> None:
    readme, components, provenance = (
        path.read_text(encoding="utf-8")
        for path in (ROOT / "README.md", DOCS / "components.md", DOCS / "provenance.md")
    )

    for row in bundled_rows():
        assert f"(docs/components.md#{row.kind}-{row.name}) | {row.summary} |" in readme
        assert f"\n### {row.kind} {row.name}\n" in components
        assert f"| {row.kind} | `{row.name}` | {row.reference} |" in provenance


@pytest.mark.parametrize("hooks", [PluginHooks, RunHooks])
def test_every_hook_has_a_heading_with_its_exact_signature(hooks: type) -> None:
    plugins = (DOCS / "plugins.md").read_text(encoding="utf-8")
    (definition,) = ast.parse(inspect.getsource(hooks)).body
    assert isinstance(definition, ast.ClassDef)

    for hook in definition.body:
        if not isinstance(hook, ast.FunctionDef):
            continue
        assert hook.returns is not None
        hook.args.args = hook.args.args[1:]  # a reader does not write `self` in a module
        signature = f"{hook.name}({ast.unparse(hook.args)}) -> {ast.unparse(hook.returns)}".replace("'", "")
        assert f"\n#### {signature}\n" in plugins


def test_every_kind_has_its_contract_described() -> None:
    text = (DOCS / "plugins.md").read_text(encoding="utf-8")

    assert [kind for kind in Kind if f"\n| {kind} | " not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(linked), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_toml_can_be_read_and_recipes_can_be_loaded(page: Path, tmp_path: Path) -> None:
    for number, text in enumerate(blocks(page, "toml")):
        tables = tomllib.loads(text)
        if "extends" in tables:
            recipe = tmp_path / f"recipe-{number}.toml"
            recipe.write_text(text, encoding="utf-8")
            load_recipe(recipe)


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_python_can_be_compiled(page: Path) -> None:
    for text in blocks(page, "python"):
        compile(text, str(page), "exec")


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_commands_have_the_options_that_are_shown(page: Path) -> None:
    for line in commands(page):
        verb, *arguments = shlex.split(line)[1:]
        if verb.startswith("-") or verb.isupper():
            continue
        command = cli.get_command(click.Context(cli), verb)
        assert command is not None
        if isinstance(command, click.Group):
            command = command.commands[arguments.pop(0)]
        known = {name for parameter in command.params for name in parameter.opts} | {"--help"}
        used = {word.partition("=")[0] for word in arguments if word.startswith("-")}
        assert used <= known, line


def test_transcripts_of_checks_are_what_is_printed() -> None:
    transcripts = blocks(DOCS / "reparam.md", "console")

    assert transcripts
    for transcript in transcripts:
        command, expected = transcript.split("\n", maxsplit=1)
        result = CliRunner().invoke(cli, shlex.split(command)[2:])
        assert result.output == expected, command


def test_the_mistake_in_the_page_on_recipes_is_what_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my.toml").write_text('extends = "yolov7-tiny"\n[assigner]\nuse = "atts"\n', encoding="utf-8")
    (transcript,) = blocks(DOCS / "recipes.md", "console")
    command, expected = transcript.split("\n", maxsplit=1)

    result = CliRunner().invoke(cli, shlex.split(command)[2:])

    assert result.output == expected


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a data set of a few drawn pictures."""
    return write_scenes(tmp_path_factory.mktemp("drawn") / "data", train=1, val=1, unseen=1)


@pytest.mark.parametrize("line", commands(ASSIGNMENT))
def test_commands_of_the_page_on_assignment_run(
    line: str, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    result = CliRunner().invoke(cli, [str(drawn) if word == "DATA" else word for word in shlex.split(line)[1:]])

    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("number", range(len(blocks(ASSIGNMENT, "toml"))))
def test_recipes_of_the_page_on_assignment_train(number: int, tmp_path: Path) -> None:
    recipe = tmp_path / "my.toml"
    recipe.write_text(blocks(ASSIGNMENT, "toml")[number], encoding="utf-8")
    torch.manual_seed(0)
    detector = assemble(recipe, num_classes=3).train()

    losses = detector(torch.rand(2, 3, *SIZE), TARGETS)
    torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call] # torch leaves it untyped

    gradients = [parameter.grad for parameter in detector.parameters()]
    assert [each for each in gradients if each is None or not each.isfinite().all()] == []


def predictions(seed: int, side: float) -> Predictions:
    """Return drawn boxes and scores on two levels, with priors of a size in cells."""
    strides = (8, 16)
    sizes_LA2 = torch.tensor(strides)[:, None, None] * torch.full((2, 1, 2), side)
    priors = Priors.on_grids([(16, 16), (8, 8)], strides, sizes_LA2)
    generator = torch.Generator().manual_seed(seed)
    half_BP2 = torch.rand(2, priors.num_priors, 2, generator=generator) * 40 + 4
    boxes_BP4 = torch.cat((priors.centers_P2 - half_BP2, priors.centers_P2 + half_BP2), dim=-1)
    return Predictions(boxes_BP4, torch.randn(2, priors.num_priors, 3, generator=generator), None, priors)


@pytest.mark.parametrize("row", rows_with_marks(ASSIGNMENT, "Swap the assigner"), ids=lambda row: row[0].split("`")[1])
def test_assigners_are_as_their_table_says(row: list[str]) -> None:
    name, reads_predictions, compares_sizes, labels, *_ = row
    assigner = assemble("demo", {"assigner.use": name.split("`")[1]}, num_classes=3).assigner

    def matches(seed: int = 0, side: float = 4.0) -> set[tuple[int, ...]]:
        found = assigner.assign(predictions(seed, side), TARGETS)
        return set(zip(found.prior_M.tolist(), found.target_M.tolist(), strict=True))

    assert matches()
    assert (matches() != matches(seed=1)) == (reads_predictions == "yes")
    assert (matches() != matches(side=1.5)) == (compares_sizes == "yes")
    qualities = assigner.assign(predictions(0, 4.0), TARGETS).quality_M
    assert bool((qualities == 1).all()) == labels.startswith("hard")


def test_the_table_of_assigners_has_all_but_the_wrappers() -> None:
    listed = {row[0].split("`")[1] for row in rows_with_marks(ASSIGNMENT, "Swap the assigner")}

    wrappers = {"independent", "lead-guided", "coarse-to-fine"}
    assert listed | wrappers == {row.name for row in bundled_rows() if row.kind == Kind.ASSIGNER}


@pytest.mark.parametrize(
    ("criterion", "settings", "is_changed"),
    [
        ("yolov7", {}, False),
        ("yolov7", {"criterion.soft_objectness": 0.5}, True),
        ("yolox", {}, False),
        ("focal", {"head.objectness": False}, True),
        ("quality-focal", {"head.objectness": False}, True),
        ("varifocal", {"head.objectness": False}, True),
    ],
)
def test_soft_labels_change_the_losses_that_the_page_says(
    criterion: str, settings: dict[str, object], *, is_changed: bool
) -> None:
    def losses(*, soft: bool) -> torch.Tensor:
        torch.manual_seed(0)
        assigner = {"use": "atss", "soft_labels": soft}
        made = assemble("demo", {"criterion.use": criterion, "assigner": assigner, **settings}, num_classes=3).train()
        return torch.stack(list(made(torch.rand(2, 3, *SIZE), TARGETS).values()))

    assert (not torch.allclose(losses(soft=False), losses(soft=True))) == is_changed


def test_every_command_is_described() -> None:
    text = (DOCS / "commands.md").read_text(encoding="utf-8")

    assert [verb for verb in VERBS if f"\n## detloom {verb}" not in text] == []


@pytest.mark.parametrize("recipe", sorted((ROOT / "examples" / "recipes").glob("*.toml")), ids=lambda path: path.stem)
def test_recipes_of_the_examples_can_be_loaded(recipe: Path) -> None:
    assert load_recipe(recipe).summary


def test_the_readme_and_the_script_run_the_same_commands() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")

    assert '.venv/bin/pip install -e ".[test]" && .venv/bin/pytest -n auto\n' in readme
    assert 'pip install --quiet -e ".[test]"\npytest' in script


@pytest.mark.slow
def test_every_ending_of_a_picture_is_named_in_one_place() -> None:
    text = " ".join((DOCS / "data.md").read_text(encoding="utf-8").split())
    *others, last = (f"`{suffix}`" for suffix in sorted(SUFFIXES))

    assert f"{', '.join(others)} or {last}" in text


@pytest.mark.parametrize("method", [name for name in vars(Detections) if name.startswith("to_")])
def test_every_form_of_detections_is_in_the_tutorial(method: str) -> None:
    assert f"`found.{method}(" in (DOCS / "tutorial.md").read_text(encoding="utf-8")


def test_the_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}

    for text in blocks(DOCS / "tutorial.md", "python"):
        exec(compile(text, "tutorial.md", "exec"), names)  # noqa: S102 - our own document

    assert (tmp_path / "runs").is_dir()


def test_the_tutorial_of_plugins_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    workshop.cache_clear()
    # The hook's class lives in this module while the blocks run.
    module = ModuleType("tutorial_plugin")
    monkeypatch.setitem(sys.modules, module.__name__, module)

    for text in blocks(DOCS / "tutorial-plugin.md", "python"):
        exec(compile(text, "tutorial-plugin.md", "exec"), vars(module))  # noqa: S102 - our own document

    workshop.cache_clear()


def test_the_tutorial_of_plugins_quotes_the_example() -> None:
    example = ROOT / "examples" / "detloom-centre-assigner"
    package = example / "src" / "detloom_centre"
    source = (package / "__init__.py").read_text(encoding="utf-8")
    own = (source, (example / "tests" / "test_centre.py").read_text(encoding="utf-8"))
    files = [(example / "pyproject.toml").read_text("utf-8"), (package / "registry.toml").read_text("utf-8")]
    python, toml = (blocks(DOCS / "tutorial-plugin.md", language) for language in ("python", "toml"))

    imports, component, hook = python[:3]
    assert all(text in source for text in (imports, component, hook))
    assert component.startswith("class CentreAssigner")
    assert sum(text.split("\n\n\n")[-1] in own[1] for text in python[3:]) == 1
    assert [text in file for text, file in zip(toml[:2], files, strict=True)] == [True, True]


def test_the_release_of_the_tutorial_of_plugins_installs_what_its_tests_need() -> None:
    page = (DOCS / "tutorial-plugin.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^ {4}pip install (.*) dist/\*\.whl$", page, flags=re.MULTILINE)
    template = (ROOT / "core/detloom/templates/common/pyproject.toml").read_text(encoding="utf-8")

    assert shlex.split(line) == tomllib.loads(template)["project"]["optional-dependencies"]["test"]


def test_the_study_of_the_tutorial_of_plugins_can_be_run(tmp_path: Path) -> None:
    plugin = ROOT / "examples" / "detloom-centre-assigner" / "src" / "detloom_centre" / "__init__.py"
    (tmp_path / "study.toml").write_text(blocks(DOCS / "tutorial-plugin.md", "toml")[2], encoding="utf-8")
    workshop.cache_clear()

    cells = checked_cells(load_study(tmp_path / "study.toml", plugins=[plugin]), num_classes=5)

    workshop.cache_clear()
    assert [cell.name for cell in cells] == ["yolov7", "simota", "centre", "centre(radius=2.5)"]
    assert [cell.reason for cell in cells] == [""] * 4


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_documents_speak_plainly(page: Path) -> None:
    text = page.read_text(encoding="utf-8")

    assert "—" not in text
    assert max(len(line) for line in text.splitlines() if not line.startswith(("|", "!"))) <= 200


@pytest.mark.parametrize("row", rows_with_marks(DOCS / "deployment.md", "Traps"), ids=lambda row: row[0][:40])
def test_every_trap_has_a_test_that_is_there(row: list[str]) -> None:
    named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", row[-1])

    assert len(named) == row[-1].count("::") > 0
    for path, test in named:
        assert f"\ndef {test}(" in (ROOT / "tests" / path).read_text(encoding="utf-8"), f"{path}::{test}"
