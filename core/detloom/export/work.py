"""From a trained detector to a report: what an export does, step by step, into a folder that is given.

Shape letters: B images, H and W rows and columns.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from detloom.detector import Detector
from detloom.engine.progress import RunView
from detloom.export.accepting import check_exported
from detloom.export.describing import described
from detloom.export.fake_quantisation import PRODUCTS
from detloom.export.fidelity import forward_of
from detloom.export.fine_tune import fine_tuned
from detloom.export.folding import Deployed, deploy, modules_named, network_of
from detloom.export.material import PROVED, Material
from detloom.export.network import Exported, Network
from detloom.export.report import Report, digest_of, file_facts, machine, versions, worst_differences
from detloom.export.sensitivity import Sensitivity, most_sensitive, sensitivities
from detloom.export.stages import FINE_TUNED, FOLDED, TRAINED, Measuring, Stage
from detloom.export.targets import Chosen
from detloom.host import write_host_files
from detloom.kinds import Kind
from detloom.recipe import Recipe
from detloom.workshop import workshop

__all__ = ["Said", "Work"]

Said = Callable[[str], None]
"""Told what is being done, in a few words."""

RANGES_BEGIN = 8
"""Pictures that the ranges of a fine-tuning begin with; they follow the training from there."""


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """One export, with all that was asked for.

    Attributes:
        name: Of the export: what a host needs is called by it, so that a device may have several.
        artifact: What is exported.
        detector: It, loaded.
        recipe: Its recipe.
        chosen: The target and its exporter.
        size: Height and width of the input.
        material: Pictures and annotations.
        passes: Reparam passes beside the recipe's and the exporter's.
        mixed: How many of the most sensitive layers keep more than eight bits, or which modules do.
        qat_epochs: Epochs of quantisation-aware fine-tuning.
        max_drop: AP that may be lost.
        said: Told what is being done.
        view: Shows the fine-tuning.
    """

    name: str
    artifact: Path
    detector: Detector
    recipe: Recipe
    chosen: Chosen
    size: tuple[int, int]
    material: Material
    passes: Sequence[str]
    mixed: int | Sequence[str]
    qat_epochs: int
    max_drop: float
    said: Said
    view: RunView

    def done(self, folder: Path) -> Report:
        """Fill a folder with the files, and return the report.

        What can fail comes first, and the long measuring last.
        """
        folded = self._folded()
        deployed = self._fine_tuned(folded) if self.qat_epochs else folded
        network, ranking = self._network(deployed.detector)
        self.said(f"the exporter '{self.chosen.name}' is at work")
        exported = self._exported(network, folder)
        write_host_files(folder, self.name, described(network, exported, self.recipe.predict))
        made = _Made(folder, folded, deployed, network, exported, ranking)
        return self._report(made, tuple(self._stages(made)))

    def _folded(self) -> Deployed:
        """Return the deployed form, proved equal, in which the modules lie that are to be precise."""
        example_BCHW = self.material.calibration.images_BCHW[:PROVED]
        self.said(f"folding, and proving the result on {len(example_BCHW)} pictures")
        deployed = deploy(self.detector, self.chosen, self.passes, example=example_BCHW)
        if not isinstance(self.mixed, int):
            modules_named(network_of(deployed.detector, self.size), self.mixed, PRODUCTS)
        return deployed

    def _stages(self, made: "_Made") -> Iterator[Stage]:
        """Yield what each form is worth, in the order of the chain."""
        measuring = Measuring(self.material, self.recipe, self.size, self.said)
        # What is folded already has no training form, and of that one nothing but AP is measured.
        if self.detector.passes and self.material.val is not None:
            yield measuring.of_detector(TRAINED, self.detector)
        yield measuring.of_detector(FOLDED, made.folded.detector)
        if self.qat_epochs:
            yield measuring.of_detector(FINE_TUNED, made.deployed.detector)
        for name, runner in self.chosen.exporter.runners(made.exported, made.folder).items():
            forward = forward_of(runner, made.network, name)
            yield measuring.of_runner(name, forward, made.deployed.detector, made.network)

    def _fine_tuned(self, deployed: Deployed) -> Deployed:
        assert self.material.train is not None  # noqa: S101 - narrows the type: data was demanded
        self.said(f"fine-tuning with rounded numbers: {self.qat_epochs} epochs")
        detector = fine_tuned(
            deployed.detector,
            self.material.train,
            self.recipe,
            epochs=self.qat_epochs,
            size=self.size,
            images_BCHW=self.material.calibration.images_BCHW[:RANGES_BEGIN],
            view=self.view,
        )
        return replace(deployed, detector=detector)

    def _network(self, detector: Detector) -> tuple[Network, tuple[Sensitivity, ...]]:
        """Return what the exporter is given, and the scan of its layers, where one was asked for."""
        network = network_of(detector, self.size)
        if not self.mixed:
            return network, ()
        if not isinstance(self.mixed, int):
            return replace(network, precise=modules_named(network, self.mixed, PRODUCTS)), ()
        self.said("scanning the layers for those that suffer most from eight bits")
        ranking = sensitivities(network, self.material.calibration.images_BCHW)
        return replace(network, precise=most_sensitive(ranking, self.mixed)), ranking

    def _exported(self, network: Network, folder: Path) -> Exported:
        exporter = self.chosen.exporter
        pictures_BCHW = self.material.calibration.images_BCHW if exporter.calibrates else None
        exported = check_exported(exporter.export(network, pictures_BCHW, folder), network, folder, self.chosen.name)
        if exported.preflight is None:
            exported = replace(exported, preflight=exporter.check(network))
        return exported

    def _report(self, made: "_Made", stages: tuple[Stage, ...]) -> Report:
        val, chosen = self.material.val, self.chosen
        report = Report(
            status="exported",
            artifact=self.artifact.name,
            artifact_sha256=digest_of(self.artifact),
            recipe=self.recipe.name,
            target=chosen.target,
            exporter=chosen.name,
            provider=workshop().provider(Kind.EXPORTER, chosen.name),
            settings=chosen.settings,
            image_size=self.size,
            passes=made.deployed.passes,
            proof=worst_differences(made.deployed.report),
            outputs=tuple(made.network.map_names),
            files=file_facts(made.folder, made.exported.files),
            stages=stages,
            max_drop=self.max_drop,
            validation="" if val is None else f"{len(val.images)} pictures of {val.source}",
            calibration=self.material.calibration if chosen.exporter.calibrates else None,
            comparison=self.material.comparison,
            precise=made.network.precise,
            ranking=made.ranking,
            qat_epochs=self.qat_epochs,
            preflight=made.exported.preflight,
            notes=(*self._idle_passes(made.deployed), *made.exported.notes),
            machine=machine(),
            versions=versions(chosen.exporter.packages),
        )
        is_too_much = report.drop is not None and report.drop > self.max_drop
        return replace(report, status="refused") if is_too_much else report

    def _idle_passes(self, deployed: Deployed) -> Iterator[str]:
        """Yield a sentence for each pass that was asked for and has changed nothing."""
        for name in dict.fromkeys(self.passes):
            folds = [each.fold for each in deployed.report.folds if each.by == name]
            if not any(each.applies for each in folds):
                why = f": {folds[0].path or 'the detector'}: {folds[0].reason}" if folds else ""
                yield f"The pass '{name}' found nothing to change{why}."


@dataclass(frozen=True, slots=True, eq=False)
class _Made:
    """What the steps have made.

    Attributes:
        folder: Where the files lie.
        folded: The deployed form as it was proved.
        deployed: The one that was exported: fine-tuned, where that was asked for.
        network: What the exporter was given.
        exported: What it gave back.
        ranking: The scan of the layers, where there was one.
    """

    folder: Path
    folded: Deployed
    deployed: Deployed
    network: Network
    exported: Exported
    ranking: tuple[Sensitivity, ...]
