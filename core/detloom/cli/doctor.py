"""``detloom doctor``: what a bug report should hold."""

import importlib.metadata
import platform
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import SkipTest

import click

from detloom.cli.options import echo_json, json_option, plugin_option
from detloom.errors import PluginError
from detloom.hookspecs import PLUGIN_API
from detloom.kinds import Kind
from detloom.workshop import Workshop

__all__ = ["command"]

DISTRIBUTIONS = (
    "detloom",
    "torch",
    "torchvision",
    "timm",
    "albumentations",
    "accelerate",
    "numpy",
    "pluggy",
    "pydantic",
    "opencv-python-headless",
    "pillow",
    "pycocotools",
    "hotcoco",
    "safetensors",
    "click",
    "rich",
)
ABSENT = "not installed"


@click.command(name="doctor")
@click.option("--kit", is_flag=True, help="Also run the conformance kit over the components of third parties.")
@plugin_option
@json_option
def command(plugins: tuple[Path, ...], *, kit: bool, as_json: bool) -> None:
    """Import every component, list versions, plugins and devices; exit with 2 when something is broken.

    Paste the output into bug reports, that of --kit where a plugin is concerned.
    """
    # What is asked for when something is wrong must not stop at the first thing that is.
    shop = Workshop(lenient=True)
    shop.load_bundled()
    shop.load_third_parties()
    for path in plugins:
        shop.load_file(path)
    facts = {**_environment(), **_plugins(shop)}
    if kit:
        facts["kit"] = list(_kit(shop))
    if as_json:
        echo_json(facts)
    else:
        _tell(facts)
    for misfit in shop.misfits:
        click.echo(f"Error: {misfit}", err=True)
    if (
        shop.misfits
        or any(each["fault"] for each in facts["plugins"])
        or any(each["failures"] for each in facts.get("kit", ()))
    ):
        raise click.exceptions.Exit(2)


def _environment() -> dict[str, Any]:
    import torch

    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "versions": {name: _version(name) for name in DISTRIBUTIONS},
        "plugin_api": PLUGIN_API,
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
    }


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ABSENT


def _plugins(shop: Workshop) -> dict[str, Any]:
    return {
        "components": sum(len(shop.names(kind)) for kind in Kind),
        "plugins": [
            {
                "name": plugin.name,
                "distribution": plugin.distribution,
                "module": plugin.module,
                "disabled": plugin.is_disabled,
                "fault": plugin.fault,
            }
            for plugin in shop.plugins()
        ],
        "files": [str(file) for file in shop.files()],
        "misfits": list(shop.misfits),
    }


def _kit(shop: Workshop) -> Iterator[dict[str, Any]]:
    """Yield what the kit finds of each component of third parties."""
    from detloom.testing import checks_of
    from detloom.testing.drawing import leaving_nothing

    for kind, name, cls in shop.third_party_components():
        found: dict[str, Any] = {"kind": kind, "name": name, "plugin": shop.provider(kind, name)}
        unchecked = None
        try:
            checks = checks_of(cls)
        except PluginError as error:
            checks, unchecked = [], str(error)
        if waiting := [check.sentence for check in checks if check.lacks_example]:
            unchecked = f"they need an example, which the plugin's own tests have: {', '.join(waiting)}"
            checks = [check for check in checks if not check.lacks_example]
        failures = []
        with leaving_nothing():
            for check in checks:
                try:
                    check()
                except AssertionError as error:
                    failures.append(str(error))
                except SkipTest as skipped:
                    unchecked = str(skipped)
        yield {**found, "checks": len(checks), "failures": failures, "unchecked": unchecked}


def _tell(facts: Mapping[str, Any]) -> None:
    click.echo(f"Python {facts['python']} on {facts['platform']}")
    for name, version in facts["versions"].items():
        click.echo(f"  {name:22} {version}")
    click.echo(f"  {facts['cpu']}, {facts['threads']} threads, GPUs: {', '.join(facts['gpus']) or 'none'}")
    click.echo(f"{facts['components']} components imported, plugin API {facts['plugin_api']}")
    for plugin in facts["plugins"]:
        state = "switched off" if plugin["disabled"] else "fine"
        click.echo(plugin["fault"] or f"plugin '{plugin['name']}' ({plugin['distribution']}): {state}")
    for file in facts["files"]:
        click.echo(f"plugin of a {file}: fine")
    for each in facts.get("kit", ()):
        who = f"kit: {each['kind']} '{each['name']}' ({each['plugin']})"
        broken = len(each["failures"])
        if each["checks"]:
            click.echo(f"{who}: {f'breaks {broken} of' if broken else 'passes'} {each['checks']} checks")
        if each["unchecked"]:
            click.echo(f"{who}: not checked: {each['unchecked']}")
        for failure in each["failures"]:
            click.echo(f"  {failure}")
