"""Checks of exporters, on a tiny network with two levels and three outputs of each.

An exporter whose packages are missing here is held to what it says without them; its other checks are skipped.
"""

import json
import math
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from unittest import SkipTest

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detloom.engine.settings import PredictSettings
from detloom.errors import ExportError
from detloom.export.accepting import check_exported
from detloom.export.describing import described
from detloom.export.fidelity import Fidelity, fidelities
from detloom.export.network import Network, Placement, Runner
from detloom.host_spec import InputSpec, TensorSpec
from detloom.settings import settings_model, validated
from detloom.testing.construction import Build, check_numbers, check_signature, demand
from detloom.testing.exporter_trials import (
    SPECIAL,
    Trial,
    export_into,
    exporter_of,
    files_in,
    pictures,
    preflight_of,
    tiny_network,
    trial_of,
)

__all__ = ["CHECKS"]

FLOAT_ERROR = {"float32": 1e-3, "float16": 2e-2}
"""Largest error of a form in float, over 1 + the output's largest value."""
LEAST_SQNR = 20.0
"""Of a form in integers, in decibels: the tiny network has more than 30 when all is right, and a scale, a zero point or
an order that is wrong leaves less than 10."""
IN_FLOAT, IN_INTEGERS = "float", "int8"
REAL = ("float16", "float32")
PRECISE = "stem.0"
FILL = 114


def settings_are_keyword_only_and_typed(build: Build) -> None:
    """``--set`` and the settings of a device are the keyword arguments of the class."""
    check_signature(build, ())


def numbers_without_sense_are_refused_by_name(build: Build) -> None:
    """An opset of -1 is a user's mistake, and is said to be one."""
    exporter_of(build)
    check_numbers(build)


def missing_packages_are_told_in_one_line(build: Build) -> None:
    """The user reads what to install, without a traceback, before anything is done."""
    said = build.cls.missing()
    demand(
        said is None or (isinstance(said, str) and said.strip() and "\n" not in said),
        f"missing() returned {said!r}; return None, or one line that says which packages are missing and what installs "
        "them",
    )


def devices_stand_for_settings_that_it_has(build: Build) -> None:
    """``--target DEVICE`` builds the exporter with the settings of the device."""
    for device, settings in build.cls.targets.items():
        demand(
            isinstance(device, str) and re.fullmatch(r"[a-z0-9]+([-.][a-z0-9]+)*", device),
            f"targets has {device!r}; name devices with lower-case letters, digits, single hyphens and dots",
        )
        _, complaints = validated(settings_model(build.cls), dict(settings), f"targets[{device!r}]")
        demand(not complaints, f"{'; '.join(complaints)}; a device's settings are those of the class")
        exporter_of(replace(build, settings={**build.settings, **settings}))


def preflight_says_where_modules_run_and_why(build: Build) -> None:
    """Each verdict is of a module of the network; what is not simply on the NPU has a reason."""
    network = tiny_network()
    found, _ = preflight_of(build)
    known = {path for path, _ in network.module.named_modules()}
    demand(found.source.strip(), "the preflight has no source; say which compiler or table it is by, and its version")
    demand(found.target.strip(), "the preflight has no target; name the device or the format")
    for each in found.verdicts:
        demand(
            each.module in known,
            f"a verdict is of '{each.module}', which is no module of the network; give the path as in named_modules(), "
            "or nothing for what belongs to none",
        )
        demand(each.operator.strip(), f"a verdict of '{each.module}' names no operator")
        demand(
            each.placement == Placement.NPU or each.reason.strip(),
            f"{each.module}: {each.operator} is '{each.placement}' without a reason; say why it is not on the NPU",
        )


def preflight_writes_nothing(build: Build) -> None:
    """``detloom export --check`` leaves no files; a compiler's lie in a temporary folder, and are taken away."""
    _, written = preflight_of(build)
    demand(not written, f"check() wrote {', '.join(written)} into the working directory; use a temporary folder")


def network_and_pictures_are_left_as_they_were(build: Build) -> None:
    """What is exported is measured against the same network afterwards."""
    demand(
        trial_of(build).untouched,
        "export() changes the network's weights, its mode, or the calibration pictures; work on copies",
    )


def files_lie_in_the_folder_and_nowhere_else(build: Build) -> None:
    """The core moves the folder when all went well, so that a failed export leaves nothing behind."""
    trial = trial_of(build)
    lying, named = sorted(files_in(trial.folder)), list(trial.exported.files)
    demand(not trial.elsewhere, f"export() wrote {', '.join(trial.elsewhere)} outside of the folder that it was given")
    demand(named, "export() names no files; the first is the one that a device runs")
    demand(
        lying == sorted(named),
        f"export() wrote {', '.join(lying)} and names {', '.join(named)}; name every file that it leaves, relative to "
        "the folder",
    )


def exporting_again_gives_the_same_bytes(build: Build) -> None:
    """A report's digests tell whether two devices have the same file."""
    first = trial_of(build)
    with tempfile.TemporaryDirectory() as room:
        again = export_into(exporter_of(build), tiny_network(), Path(room) / "another")
        one, other = files_in(first.folder), files_in(again.folder)
    differ = [name for name in sorted({*one, *other}) if one.get(name) != other.get(name)]
    demand(not differ, f"{', '.join(differ)} differ when exported again; leave out times, paths and random names")


def host_is_told_all_of_input_and_outputs(build: Build) -> None:
    """A host quantises the input and reads the outputs by the description alone."""
    trial = trial_of(build)
    exported, network = trial.exported, trial.network
    check_exported(exported, network, trial.folder, type(trial.exporter).__name__)
    demand(
        exported.input["fill"] == FILL, f"the input's fill is {exported.input['fill']}; evaluation fills with {FILL}"
    )
    _demand_numbers("input", exported.input)
    for tensor in exported.tensors:
        _demand_numbers(f"output '{tensor['name']}'", tensor)
    names = [tensor["name"] for tensor in exported.tensors]
    demand(len(set(names)) == len(names) and all(names), f"outputs are called {names}; each needs a name of its own")
    json.dumps(described(network, exported, PredictSettings()), allow_nan=False)


def outputs_come_in_the_order_of_the_maps(build: Build) -> None:
    """A compiler may sort outputs; tensors and maps of a runner are in the network's order."""
    trial = trial_of(build)
    images_BCHW = pictures()[1]
    with torch.no_grad():
        expected = [list(each.shape) for each in trial.network.module(images_BCHW)]
    for name, runner in _runners(trial).items():
        found = [list(each.shape) for each in _run(runner, images_BCHW)]
        demand(found == expected, f"the runner '{name}' returned maps of shapes {found}, the network has {expected}")


def pictures_of_a_batch_do_not_touch(build: Build) -> None:
    """Evaluation runs batches; a file that takes one picture is run once for each."""
    trial = trial_of(build)
    images_BCHW = pictures()[1]
    for name, runner in _runners(trial).items():
        together = _run(runner, images_BCHW)
        alone = [_run(runner, one) for one in torch.split(images_BCHW, 1)]
        for index, of_all in enumerate(together):
            single = np.concatenate([maps[index] for maps in alone])
            demand(
                of_all.shape == single.shape and np.allclose(of_all, single, rtol=1e-4, atol=1e-4),
                f"the runner '{name}' returns other maps for a picture in a batch than for it alone",
            )


def what_runs_is_what_was_given(build: Build) -> None:
    """Every form that runs here agrees with the network, as far as its numbers can."""
    trial = trial_of(build)
    images_BCHW = pictures()[1]
    with torch.no_grad():
        expected = trial.network.module(images_BCHW)
    is_rounded = _has_few_bits(trial)
    for name, runner in _runners(trial).items():
        for each in _fidelities(trial.network, expected, _run(runner, images_BCHW)):
            if name == IN_FLOAT or not is_rounded:
                _demand_float(name, each, max(FLOAT_ERROR.get(kind, 0.0) for kind in {*_types(trial), "float32"}))
            else:
                demand(
                    each.sqnr_db >= LEAST_SQNR,
                    f"'{each.output}' of the runner '{name}' has {each.sqnr_db:.1f} dB of signal over noise, at least "
                    f"{LEAST_SQNR:g} are due; look for a scale, a zero point, a layout or a range that is wrong",
                )


def unknown_operator_is_named_with_its_module(build: Build) -> None:
    """An operator that the target has not is refused before anything runs, or is computed right: never left out."""
    network = tiny_network(odd=True)
    images_BCHW = pictures()[1]
    with tempfile.TemporaryDirectory() as room:
        try:
            trial = export_into(exporter_of(build), network, Path(room))
        except ExportError as error:
            demand(SPECIAL in str(error), f"the message does not name the module '{SPECIAL}': {error}")
            return
        with torch.no_grad():
            expected = network.module(images_BCHW)
        runners = trial.exporter.runners(trial.exported, trial.folder)
        demand(runners, f"'{SPECIAL}' has an operator that no chip knows, and nothing was said; raise ExportError")
        for name, runner in runners.items():
            found = _fidelities(network, expected, _run(runner, images_BCHW))
            worst = min(found, key=lambda each: each.sqnr_db, default=Fidelity("nothing", -math.inf, math.inf, 0.0))
            demand(
                worst.sqnr_db >= LEAST_SQNR,
                f"'{SPECIAL}' has an operator that no chip knows; it was exported without a word, and the runner "
                f"'{name}' gives {worst.sqnr_db:.1f} dB in '{worst.output}'; raise ExportError that names the module",
            )


def modules_that_need_more_bits_get_them_or_are_refused(build: Build) -> None:
    """``Network.precise`` is no hint: who cannot give a module more than eight bits says so."""
    trial = trial_of(build)
    if not _has_few_bits(trial):
        raise SkipTest("nothing in its files has as few as eight bits")
    with tempfile.TemporaryDirectory() as room:
        try:
            precise = export_into(exporter_of(build), tiny_network(precise=(PRECISE,)), Path(room))
        except ExportError as error:
            demand(PRECISE in str(error), f"the message does not name the module '{PRECISE}': {error}")
            return
        demand(
            files_in(precise.folder) != files_in(trial.folder),
            f"with precise=('{PRECISE}',) the files are the same; give the module more bits, or raise ExportError that "
            "names it",
        )


CHECKS: tuple[Callable[[Build], None], ...] = (
    settings_are_keyword_only_and_typed,
    numbers_without_sense_are_refused_by_name,
    missing_packages_are_told_in_one_line,
    devices_stand_for_settings_that_it_has,
    preflight_says_where_modules_run_and_why,
    preflight_writes_nothing,
    network_and_pictures_are_left_as_they_were,
    files_lie_in_the_folder_and_nowhere_else,
    exporting_again_gives_the_same_bytes,
    host_is_told_all_of_input_and_outputs,
    outputs_come_in_the_order_of_the_maps,
    pictures_of_a_batch_do_not_touch,
    what_runs_is_what_was_given,
    unknown_operator_is_named_with_its_module,
    modules_that_need_more_bits_get_them_or_are_refused,
)


def _runners(trial: Trial) -> dict[str, Runner]:
    """Return what runs the forms here, or skip the check where nothing does.

    Raises:
        SkipTest: Nothing here can run them.
    """
    found = dict(trial.exporter.runners(trial.exported, trial.folder))
    if not found:
        raise SkipTest("nothing here can run its files")
    return found


def _types(trial: Trial) -> set[str]:
    return {tensor["dtype"] for tensor in trial.exported.tensors}


def _has_few_bits(trial: Trial) -> bool:
    """Return whether an exported form computes in integers; its outputs may be real numbers all the same."""
    return not _types(trial) <= set(REAL) or IN_INTEGERS in trial.exporter.runners(trial.exported, trial.folder)


def _run(runner: Runner, images_BCHW: Tensor) -> list[NDArray[np.float32]]:
    return [np.asarray(each) for each in runner(images_BCHW.contiguous().numpy())]


def _fidelities(network: Network, expected: Sequence[Tensor], found: Sequence[NDArray[np.float32]]) -> list[Fidelity]:
    """Return how true the outputs are whose shape is right; another check tells of the others."""
    rows = zip(network.map_names, expected, map(torch.from_numpy, found), strict=False)
    return [fidelities([ours], [theirs], [name])[0] for name, ours, theirs in rows if ours.shape == theirs.shape]


def _demand_float(name: str, found: Fidelity, tolerance: float) -> None:
    demand(
        found.largest_error <= tolerance * (1 + found.peak),
        f"'{found.output}' of the runner '{name}' is {found.largest_error:.3g} from the network's, with values up to "
        f"{found.peak:.3g}; at most {tolerance:g} of 1 + that is rounding",
    )


def _demand_numbers(what: str, spec: InputSpec | TensorSpec) -> None:
    """Demand a scale of whole numbers, and none of real ones."""
    is_real, scale = spec["dtype"] in REAL, spec["scale"]
    demand(spec["name"], f"the {what} has no name")
    if is_real:
        demand(
            scale is None and spec["zero_point"] == 0,
            f"the {what} is {spec['dtype']} with scale {scale} and zero point {spec['zero_point']}; real numbers have "
            "None and 0",
        )
        return
    limits = np.iinfo(spec["dtype"])
    demand(
        scale is not None and scale > 0 and limits.min <= spec["zero_point"] <= limits.max,
        f"the {what} is {spec['dtype']} with scale {scale} and zero point {spec['zero_point']}; whole numbers have a "
        f"scale above 0, and a zero point from {limits.min} to {limits.max}",
    )
