"""From a trained detector to a report: what an export does, step by step, into a folder that is given.

Shape letters: B images, H and W rows and columns.
"""

from collections.abc import Callable, Sequence
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
    """One export, with all that it was decided to work with.

    Attributes:
        artifact: What is exported.
        detector: It, loaded.
        recipe: Its recipe.
        chosen: The target and its exporter.
        size: Height and width of the input.
        material: Pictures and annotations.
        said: Told what is being done.
    """

    artifact: Path
    detector: Detector
    recipe: Recipe
    chosen: Chosen
    size: tuple[int, int]
    material: Material
    said: Said

    def done(
        self,
        folder: Path,
        *,
        passes: Sequence[str],
        mixed: int | Sequence[str],
        qat_epochs: int,
        max_drop: float,
        view: RunView,
    ) -> Report:
        """Fill a folder with the files, and return the report."""
        measuring = Measuring(self.material, self.recipe, self.size, self.said)
        deployed, stages = self._deployed(passes, measuring)
        if qat_epochs:
            deployed = self._fine_tuned(deployed, qat_epochs, view)
            stages.append(measuring.of_detector(FINE_TUNED, deployed.detector))
        network, ranking = self._network(deployed.detector, mixed)
        self.said(f"exporter '{self.chosen.name}' is at work")
        exported = self._exported(network, folder)
        stages += self._run_stages(exported, folder, deployed.detector, network, measuring)
        return self._report(folder, deployed, network, exported, stages, ranking, max_drop, qat_epochs)

    def _deployed(self, passes: Sequence[str], measuring: Measuring) -> tuple[Deployed, list[Stage]]:
        """Return the deployed form, proved equal, and the stages so far."""
        example_BCHW = self.material.calibration.images_BCHW[:PROVED]
        self.said(f"folding, and proving the result on {len(example_BCHW)} pictures")
        # What is folded already has no training form to measure.
        stages = [measuring.of_detector(TRAINED, self.detector)] if self.detector.passes else []
        deployed = deploy(self.detector, self.chosen, passes, example=example_BCHW)
        return deployed, [*stages, measuring.of_detector(FOLDED, deployed.detector)]

    def _fine_tuned(self, deployed: Deployed, epochs: int, view: RunView) -> Deployed:
        assert self.material.train is not None  # noqa: S101 - demanded with the other conditions
        self.said(f"fine-tuning with rounded numbers, {epochs} {'epoch' if epochs == 1 else 'epochs'}")
        detector = fine_tuned(
            deployed.detector,
            self.material.train,
            self.recipe,
            epochs=epochs,
            size=self.size,
            images_BCHW=self.material.calibration.images_BCHW[:RANGES_BEGIN],
            view=view,
        )
        return replace(deployed, detector=detector)

    def _network(self, detector: Detector, mixed: int | Sequence[str]) -> tuple[Network, tuple[Sensitivity, ...]]:
        network = network_of(detector, self.size)
        if not mixed:
            return network, ()
        if not isinstance(mixed, int):
            return replace(network, precise=modules_named(network, mixed, PRODUCTS)), ()
        self.said("scanning the layers for what suffers most from eight bits")
        ranking = sensitivities(network, self.material.calibration.images_BCHW)
        return replace(network, precise=most_sensitive(ranking, mixed)), ranking

    def _exported(self, network: Network, folder: Path) -> Exported:
        exporter = self.chosen.exporter
        pictures = self.material.calibration.images_BCHW if exporter.calibrates else None
        exported = check_exported(exporter.export(network, pictures, folder), network, folder, self.chosen.name)
        if exported.preflight is None:
            exported = replace(exported, preflight=exporter.check(network))
        return exported

    def _run_stages(
        self, exported: Exported, folder: Path, detector: Detector, network: Network, measuring: Measuring
    ) -> list[Stage]:
        runners = self.chosen.exporter.runners(exported, folder)
        return [
            measuring.of_runner(name, forward_of(runner, network, name), detector, network)
            for name, runner in runners.items()
        ]

    def _report(
        self,
        folder: Path,
        deployed: Deployed,
        network: Network,
        exported: Exported,
        stages: list[Stage],
        ranking: tuple[Sensitivity, ...],
        max_drop: float,
        qat_epochs: int,
    ) -> Report:
        """Write what a host needs beside the files, and gather the report."""
        stem = exported.files[0].partition(".")[0]
        write_host_files(folder, stem, described(network, exported, self.recipe.predict))
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
            passes=deployed.passes,
            proof=worst_differences(deployed.report),
            outputs=tuple(network.map_names),
            files=file_facts(folder, exported.files),
            stages=tuple(stages),
            max_drop=max_drop,
            validation="" if val is None else f"{len(val.images)} pictures of {val.source}",
            calibration=self.material.calibration if chosen.exporter.calibrates else None,
            comparison=self.material.comparison,
            precise=network.precise,
            ranking=ranking,
            qat_epochs=qat_epochs,
            preflight=exported.preflight,
            notes=exported.notes,
            machine=machine(),
            versions=versions(chosen.exporter.packages),
        )
        is_too_much = report.drop is not None and report.drop > max_drop
        return replace(report, status="refused") if is_too_much else report
