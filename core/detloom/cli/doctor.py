"""``detloom doctor``: what a bug report should hold."""

import importlib.metadata
import platform
import sys

import click

from detloom.cli.options import echo_json, json_option
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


@click.command(name="doctor")
@json_option
def command(*, as_json: bool) -> None:
    """Import every component, list versions, plugins and devices; exit with 2 when something is broken."""
    import torch

    # What is asked for when something is wrong must not stop at the first thing that is.
    shop = Workshop(lenient=True)
    shop.load_bundled()
    shop.load_third_parties()
    plugins = shop.plugins()
    facts = {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "versions": {name: importlib.metadata.version(name) for name in DISTRIBUTIONS},
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "components": sum(len(shop.names(kind)) for kind in Kind),
        "plugins": [
            {
                "name": plugin.name,
                "distribution": plugin.distribution,
                "module": plugin.module,
                "disabled": plugin.is_disabled,
                "fault": plugin.fault,
            }
            for plugin in plugins
        ],
        "misfits": list(shop.misfits),
    }
    faults = [plugin.fault for plugin in plugins if plugin.fault]
    if as_json:
        echo_json(facts)
    else:
        click.echo(f"Python {facts['python']} on {facts['platform']}")
        for name, version in facts["versions"].items():  # type: ignore[attr-defined] # the dict above is of mixed values
            click.echo(f"  {name:16} {version}")
        click.echo(f"  {facts['cpu']}, {facts['threads']} threads, GPUs: {', '.join(facts['gpus']) or 'none'}")  # type: ignore[arg-type] # as above
        click.echo(f"{facts['components']} components imported")
        for plugin in plugins:
            state = "switched off" if plugin.is_disabled else "fine"
            click.echo(plugin.fault or f"plugin '{plugin.name}' ({plugin.distribution}): {state}")
    for misfit in shop.misfits:
        click.echo(f"Error: {misfit}", err=True)
    if faults or shop.misfits:
        raise click.exceptions.Exit(2)
