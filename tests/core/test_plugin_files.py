"""Plugins that are files: named by a recipe, by --plugin or in Python, and never run for an artifact alone."""

import json
from collections.abc import Iterator
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from narrow_recipe import NARROW

import detloom
from detloom.artifacts import read_artifact, save_artifact
from detloom.cli import cli
from detloom.errors import ArtifactError, PluginError, RecipeError
from detloom.recipe import Recipe, load_recipe
from detloom.workshop import Workshop, workshop

HEAD = '''
from pathlib import Path

from detloom import hookimpl
from detloom_plugins.decoupled_head import DecoupledHead

with Path(__file__).with_name("ran.txt").open("a") as log:
    log.write("x")

class Mine(DecoupledHead):
    """Mine.

    Args:
        width: Of it.
    """

    def __init__(self, inputs, num_classes, *, width: int = 16):
        super().__init__(inputs, num_classes, width=width, depth=1)

@hookimpl
def register_components(register):
    register("mine", Mine)
'''
SMALL = {"head.use": "mine", "criterion.use": "yolox", "assigner.use": "simota"}


@pytest.fixture(autouse=True)
def own_workshop() -> Iterator[None]:
    """Give each test the environment's workshop as a new process has it."""
    workshop.cache_clear()
    yield
    workshop.cache_clear()


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    path = tmp_path / "code" / "my_head.py"
    path.parent.mkdir()
    path.write_text(HEAD, encoding="utf-8")
    return path


@pytest.fixture
def recipe(tmp_path: Path, plugin: Path) -> Path:  # noqa: ARG001 - the file must be there
    path = tmp_path / "recipes" / "mine.toml"
    path.parent.mkdir()
    path.write_text(
        'extends = "yolov7-tiny"\nplugins = ["../code/my_head.py"]\n[head]\nuse = "mine"\n'
        '[assigner]\nuse = "simota"\n[criterion]\nuse = "yolox"\n',
        encoding="utf-8",
    )
    return path


def runs(plugin: Path) -> int:
    """Return how often the plugin's file was run."""
    log = plugin.with_name("ran.txt")
    return len(log.read_text(encoding="utf-8")) if log.exists() else 0


def run_cli(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(each) for each in arguments])


def written_artifact(folder: Path, recipe: Path | Recipe) -> Path:
    """Write an artifact as a process of its own would, and forget the plugin."""
    detector = detloom.assemble(recipe, names=["cat"])
    assert detector.recipe is not None
    path = folder / "mine.safetensors"
    save_artifact(path, detector, recipe=detector.recipe, names=detector.names)
    workshop.cache_clear()
    return path


def test_a_recipe_names_the_file_by_a_path_relative_to_its_own(
    recipe: Path, plugin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir("/")

    loaded = load_recipe(recipe)

    assert loaded.plugins == (str(plugin.resolve()),)
    assert type(detloom.assemble(loaded).head).__name__ == "Mine"
    assert runs(plugin) == 1


@pytest.mark.usefixtures("recipe")
def test_files_of_a_recipe_that_is_extended_are_run_first(tmp_path: Path, plugin: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(HEAD.replace('"mine"', '"own"'), encoding="utf-8")
    child = tmp_path / "child.toml"
    child.write_text('extends = "recipes/mine.toml"\nplugins = ["own.py"]\n[head]\nuse = "own"\n', encoding="utf-8")

    assert load_recipe(child).plugins == (str(plugin.resolve()), str(own.resolve()))


def test_a_workshop_of_ones_own_takes_the_file_alone(recipe: Path) -> None:
    load_recipe(recipe, shop=Workshop(installed=(), disabled=()))

    with pytest.raises(RecipeError, match="no head is called 'mine'"):
        load_recipe("yolov7-tiny", {"head.use": "mine"})


def test_the_command_line_takes_the_file_by_an_option(plugin: Path) -> None:
    settings = [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]

    refused = run_cli("check", "yolov7-tiny", *settings)
    checked = run_cli("check", "yolov7-tiny", "--plugin", plugin, *settings, "--json")
    described = run_cli("info", "head", "mine", "--plugin", plugin)

    assert refused.exit_code == 2
    assert "no head is called 'mine'" in refused.output
    assert checked.exit_code == 0, checked.output
    assert json.loads(checked.output)["strides"] == [8, 16, 32]
    assert "file my_head.py, sha256 " in described.output
    assert "width: whole number  = 16" in described.output


def test_python_takes_the_file_by_an_argument(plugin: Path) -> None:
    detector = detloom.assemble("yolov7-tiny", SMALL, plugins=[plugin])

    assert type(detector.head).__name__ == "Mine"
    assert detloom.check("yolov7-tiny", SMALL, plugins=[plugin]).num_classes == 80


def test_plugins_that_are_no_paths_or_set_as_a_value_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text('plugins = "mine.py"\n', encoding="utf-8")

    with pytest.raises(RecipeError, match=r"wrong\.toml: `plugins` must be an array of paths"):
        load_recipe(path)
    with pytest.raises(RecipeError, match="stands at the top of a recipe's file, or is given with --plugin"):
        load_recipe("yolov7-tiny", {"plugins": ["mine.py"]})


def test_a_missing_file_is_told_with_its_path(recipe: Path, plugin: Path) -> None:
    plugin.unlink()

    with pytest.raises(PluginError, match=r"my_head\.py: the plugin's file cannot be read: No such file"):
        load_recipe(recipe)


def test_an_artifact_records_name_and_digest_and_no_folder(tmp_path: Path, recipe: Path) -> None:
    artifact = read_artifact(written_artifact(tmp_path, recipe))

    assert artifact.recipe.plugins == ("my_head.py",)
    assert artifact.components["head.mine"].startswith("file my_head.py, sha256 ")
    assert artifact.components["assigner.simota"].startswith("detloom ")
    assert str(tmp_path).encode() not in artifact.path.read_bytes()


def test_an_artifact_runs_no_file_by_itself_and_says_which_to_give(
    tmp_path: Path, recipe: Path, plugin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written_artifact(tmp_path, recipe)
    before = runs(plugin)
    monkeypatch.chdir(plugin.parent)  # where a file of the recorded name lies

    with pytest.raises(ArtifactError) as caught:
        detloom.load(path)

    assert runs(plugin) == before
    assert "the head 'mine', which came with file my_head.py, sha256 " in str(caught.value)
    assert "give its path: --plugin my_head.py; in Python plugins=['my_head.py']" in str(caught.value)
    assert str(caught.value).count("not run unasked") == 1
    assert "pip install" not in str(caught.value)


def test_a_package_is_named_with_its_folder(tmp_path: Path, plugin: Path) -> None:
    package = tmp_path / "my_package"
    package.mkdir()
    plugin.rename(package / "__init__.py")

    recipe = load_recipe("yolov7-tiny", SMALL, plugins=[package / "__init__.py"])

    assert read_artifact(written_artifact(tmp_path, recipe)).recipe.plugins == ("my_package/__init__.py",)


def test_an_artifact_names_the_distributions_that_are_not_here_and_no_others(tmp_path: Path) -> None:
    from detloom.durable import read_tensors, write_tensors

    path = written_artifact(tmp_path, load_recipe("yolov7-tiny"))
    tensors, metadata = read_tensors(path)
    components = {**json.loads(metadata["components"]), "assigner.centre": "detloom-centre-assigner 0.1.0"}
    recipe = metadata["recipe"].replace('use = "yolov7"', 'use = "centre"', 1)
    write_tensors(path, tensors, {**metadata, "recipe": recipe, "components": json.dumps(components)})

    with pytest.raises(ArtifactError) as caught:
        detloom.load(path)

    assert "the assigner 'centre', which came with detloom-centre-assigner 0.1.0" in str(caught.value)
    assert str(caught.value).endswith("Install: pip install detloom-centre-assigner==0.1.0")


def test_an_artifact_whose_plugin_is_switched_off_does_not_ask_to_install_it(tmp_path: Path) -> None:
    from detloom.durable import read_tensors, write_tensors

    distribution = tmp_path / "detloom_centre-0.1.0.dist-info"
    distribution.mkdir()
    (distribution / "METADATA").write_text("Metadata-Version: 2.1\nName: detloom-centre\nVersion: 0.1.0\n", "utf-8")
    (distribution / "entry_points.txt").write_text("[detloom.plugins]\ncentre = detloom_centre\n", "utf-8")
    shop = Workshop(installed=PathDistribution(distribution).entry_points, disabled=["centre"])
    path = written_artifact(tmp_path, load_recipe("yolov7-tiny"))
    tensors, metadata = read_tensors(path)
    components = {**json.loads(metadata["components"]), "assigner.centre": "detloom-centre 0.1.0"}
    recipe = metadata["recipe"].replace('use = "yolov7"', 'use = "centre"', 1)
    write_tensors(path, tensors, {**metadata, "recipe": recipe, "components": json.dumps(components)})

    with pytest.raises(ArtifactError) as caught:
        detloom.load(path, shop=shop)

    assert "It is installed: take centre out of DETLOOM_DISABLE_PLUGINS" in str(caught.value)
    assert "pip install" not in str(caught.value)


@pytest.mark.parametrize("claim", ["--index-url=http://x centre", "centre $(x)", "centre 1;x", "centre"])
def test_what_is_no_distribution_is_not_put_into_a_command(tmp_path: Path, claim: str) -> None:
    from detloom.durable import read_tensors, write_tensors

    path = written_artifact(tmp_path, load_recipe("yolov7-tiny"))
    tensors, metadata = read_tensors(path)
    recipe = metadata["recipe"].replace('use = "yolov7"', 'use = "centre"', 1)
    write_tensors(path, tensors, {**metadata, "recipe": recipe, "components": json.dumps({"assigner.centre": claim})})

    with pytest.raises(ArtifactError, match="the assigner 'centre', which came with") as caught:
        detloom.load(path)

    assert "pip install" not in str(caught.value)


def test_an_artifact_whose_recipe_names_an_absolute_path_does_not_run_it(
    tmp_path: Path, recipe: Path, plugin: Path
) -> None:
    from detloom.durable import read_tensors, write_tensors

    path = written_artifact(tmp_path, recipe)
    tensors, metadata = read_tensors(path)
    hostile = metadata["recipe"].replace("my_head.py", str(plugin))
    write_tensors(path, tensors, {**metadata, "recipe": hostile})
    before = runs(plugin)

    with pytest.raises(ArtifactError, match=r"not run unasked: my_head\.py"):
        detloom.load(path)
    read_artifact(path)
    load_recipe(Recipe.from_toml(f'plugins = ["{plugin}"]', "hostile"))

    assert runs(plugin) == before


@pytest.mark.filterwarnings("error")
def test_an_artifact_is_loaded_with_the_file_that_is_given(tmp_path: Path, recipe: Path, plugin: Path) -> None:
    path = written_artifact(tmp_path, recipe)

    detector = detloom.load(path, plugins=[plugin])

    assert type(detector.head).__name__ == "Mine"
    assert detector.recipe is not None
    assert detector.recipe.plugins == ("my_head.py",)


def test_a_file_that_changed_since_is_told(tmp_path: Path, recipe: Path, plugin: Path) -> None:
    path = written_artifact(tmp_path, recipe)
    plugin.write_text(HEAD + "\n# changed\n", encoding="utf-8")

    with pytest.warns(UserWarning, match=r"my_head\.py is not the file that the artifact was made with"):
        detloom.load(path, plugins=[plugin])


def test_a_file_that_is_given_takes_the_place_of_one_that_was_moved(recipe: Path, plugin: Path) -> None:
    moved = plugin.rename(recipe.with_name(plugin.name))

    assert load_recipe(recipe, plugins=[moved]).plugins == (str(moved),)


def test_artifacts_are_averaged_with_the_file_that_is_given_and_the_next_command_has_it(
    tmp_path: Path, recipe: Path, plugin: Path
) -> None:
    parts = []
    for number in range(2):
        written = written_artifact(tmp_path, load_recipe(recipe, NARROW))
        parts.append(written.rename(tmp_path / f"{number}.safetensors"))
    out = tmp_path / "average.safetensors"

    result = run_cli("average", *parts, "-o", out, "--plugin", plugin)

    assert result.exit_code == 0, result.output
    assert f"next: detloom predict {out} PICTURES -o found --plugin {plugin}\n" in result.stdout


def test_a_run_is_resumed_with_the_file_given_again_wherever_it_lies_and_tells_so(
    tmp_path: Path, recipe: Path, plugin: Path
) -> None:
    from detloom.engine.fit import fit, resume
    from detloom.scenes import write_scenes

    data = write_scenes(tmp_path / "data", train=4, val=2, unseen=1)
    settings = {
        **NARROW,
        "train.epochs": 1,
        "train.batch": 4,
        "data.image_size": 64,
        "data.workers": 0,
        "train.evaluate_every": 0,
    }
    torch.manual_seed(0)
    run = fit(recipe, data=data, out=tmp_path / "run", overrides=settings, progress=False)
    workshop.cache_clear()
    moved = plugin.rename(tmp_path / plugin.name)

    with pytest.raises(RecipeError, match=r"give its path: --plugin my_head\.py"):
        resume(run.directory, progress=False)
    result = run_cli("train", "--resume", run.directory, "--plugin", moved, "--json")

    told = json.loads(result.stdout)
    assert told["status"] == "finished"
    assert told["message"].startswith(f"{run.directory}: this run is finished")
    assert told["message"].endswith(f"--set train.epochs=NUMBER --plugin {moved}")
