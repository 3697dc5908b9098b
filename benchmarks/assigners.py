"""Assignment and losses beside plain per-image forms of the same maths, in the same run.

    python benchmarks/assigners.py [--classes 80] [--threads 1]

Time and peak memory (on Linux) of each assigner, how far both agree, how the time grows with objects and priors, and
what the assignment is to a whole loss. Plain ones stop at nothing: they hold every pair.

Shape letters: see ``detloom.structures``.
"""

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from plain_assigners import PLAIN

from detloom.building import build
from detloom.interfaces import Assigner
from detloom.kinds import Kind
from detloom.ops.boxes import cxcywh_to_xyxy
from detloom.structures import Assignment, Predictions, Priors, Targets
from detloom.workshop import workshop
from detloom_plugins.dynamic_k import Yolov7Assigner
from detloom_plugins.yolov7_criterion import Yolov7Criterion

# Before the name of an assigner: its plain form.
PLAINLY = "plain "

STRIDES = (8, 16, 32)
ANCHORS_LA2 = torch.tensor(
    [
        [[12.0, 16.0], [19.0, 36.0], [40.0, 28.0]],
        [[36.0, 75.0], [76.0, 55.0], [72.0, 146.0]],
        [[142.0, 110.0], [192.0, 243.0], [459.0, 401.0]],
    ]
)


def random_case(batch: int, size: int, classes: int, objects: list[int]) -> tuple[Predictions, Targets]:
    """Return predictions near their anchors, and as many objects an image as listed, of sizes as in photographs."""
    generator = torch.Generator().manual_seed(0)
    priors = Priors.on_grids([(size // s, size // s) for s in STRIDES], STRIDES, ANCHORS_LA2)
    shape = (batch, priors.num_priors)
    center_BP2 = priors.centers_P2 + (torch.rand((*shape, 2), generator=generator) * 2 - 1) * priors.strides_P[:, None]
    size_BP2 = priors.sizes_P2 * (torch.randn((*shape, 2), generator=generator) * 0.4).exp()
    predictions = Predictions(
        cxcywh_to_xyxy(torch.cat((center_BP2, size_BP2), dim=-1)),
        torch.randn((*shape, classes), generator=generator) - 3,
        torch.randn(shape, generator=generator) - 3,
        priors,
    )
    boxes, labels = [], []
    for count in objects:
        side_N2 = size * (torch.rand((count, 2), generator=generator) * 3 - 4).exp()
        center_N2 = side_N2 / 2 + torch.rand((count, 2), generator=generator) * (size - side_N2)
        boxes.append(cxcywh_to_xyxy(torch.cat((center_N2, side_N2), dim=-1)))
        labels.append(torch.randint(0, classes, (count,), generator=generator))
    return predictions, Targets.from_lists(boxes, labels, (size, size))


def milliseconds(work: Callable[[], object], *, repeats: int = 9, limit_s: float = 6.0) -> float:
    """Return the median time of a piece of work, after once without measuring."""
    work()
    taken: list[float] = []
    begin = time.perf_counter()
    while len(taken) < repeats and (len(taken) < 3 or time.perf_counter() - begin < limit_s):
        start = time.perf_counter()
        work()
        taken.append(1000 * (time.perf_counter() - start))
    return statistics.median(taken)


def agreement(a: Assignment, b: Assignment) -> float:
    """Return the share of the matches that both have."""

    def rows(given: Assignment) -> set[tuple[int, ...]]:
        columns = (given.image_M, given.prior_M, given.target_M)
        return set(zip(*(column.tolist() for column in columns), strict=True))

    return len(rows(a) & rows(b)) / max(1, len(rows(a) | rows(b)))


def loss_step(predictions: Predictions, targets: Targets, assign: Callable[[Predictions, Targets], Assignment]) -> None:
    """Assign, compute the losses and their gradients on all that is predicted."""
    given = predictions.detach()
    for leaf in (given.boxes_BP4, given.class_logits_BPC, given.objectness_BP):
        if leaf is not None:
            leaf.requires_grad_()
    losses = Yolov7Criterion().losses(given, assign(given, targets), targets)
    torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped


def peak_megabytes(name: str, case: "Case") -> float:
    """Return what one assignment needs beside its inputs at most, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_peak, (name, case))


def _peak(name: str, case: "Case") -> float:
    torch.set_num_threads(1)
    predictions, targets = case.made()
    # A small case first, so that what is loaded once is there.
    assign = assigners()[name].assign if name in assigners() else PLAIN[name.removeprefix(PLAINLY)]
    assign(*random_case(1, 256, case.classes, [1]))
    # Linux forgets the highest use of memory so far.
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _memory("VmRSS")
    assign(predictions, targets)
    return _memory("VmHWM") - before


def _memory(entry: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(entry))


@dataclass(frozen=True, slots=True)
class Case:
    """How large a batch is."""

    batch: int
    size: int
    objects: int
    classes: int

    def made(self) -> tuple[Predictions, Targets]:
        """Return the predictions and targets."""
        return random_case(self.batch, self.size, self.classes, [self.objects] * self.batch)

    def __str__(self) -> str:
        """Say it in words."""
        return f"batch {self.batch} at {self.size}, {self.objects} objects an image"


def assigners() -> dict[str, Assigner]:
    """Return the assigners that need no other, with their defaults."""
    names = [name for name in workshop().names(Kind.ASSIGNER) if name in PLAIN]
    return {name: build(Kind.ASSIGNER, {"use": name}) for name in names}


def compare(case: Case) -> None:
    """Print time and memory of each assigner beside its plain form."""
    predictions, targets = case.made()
    print(f"\n{case}, {case.classes} classes")
    print(
        f"{'assigner':>13} {'plain ms':>9} {'ours ms':>8} {'ratio':>6} {'plain MB':>9} {'ours MB':>8} {'agreement':>10}"
    )
    for name, assigner in assigners().items():
        theirs = milliseconds(partial(PLAIN[name], predictions, targets))
        ours = milliseconds(partial(assigner.assign, predictions, targets))
        same = agreement(assigner.assign(predictions, targets), PLAIN[name](predictions, targets))
        memory = [peak_megabytes(each, case) for each in (PLAINLY + name, name)]
        print(
            f"{name:>13} {theirs:9.1f} {ours:8.1f} {ours / theirs:6.2f} {memory[0]:9.0f} {memory[1]:8.0f} {same:10.4f}",
            flush=True,
        )


def growth(batch: int, classes: int) -> None:
    """Print how the time of each assigner grows with the objects and with the priors."""
    cases = [(640, objects) for objects in (1, 10, 100, 500)] + [(320, 20), (640, 20), (1280, 20)]
    print(f"\nmilliseconds, batch {batch}, {classes} classes: side and objects an image")
    print(f"{'assigner':>13} " + " ".join(f"{f'{size}/{objects}':>9}" for size, objects in cases))
    made = [random_case(batch, size, classes, [objects] * batch) for size, objects in cases]
    for name, assigner in assigners().items():
        times = (milliseconds(partial(assigner.assign, *each), repeats=5, limit_s=3) for each in made)
        print(f"{name:>13} " + " ".join(f"{time_ms:9.1f}" for time_ms in times), flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{arguments.threads} thread(s)")
    compare(Case(16, 640, 20, arguments.classes))
    compare(Case(8, 1280, 100, arguments.classes))
    growth(4, arguments.classes)

    # One crowded image among others, as mosaics have it.
    crowded = [5 + 95 * (i == 0) + 15 * (i % 3) for i in range(16)]
    predictions, targets = random_case(16, 640, arguments.classes, crowded)
    theirs = milliseconds(partial(PLAIN["yolov7"], predictions, targets))
    ours = milliseconds(partial(Yolov7Assigner().assign, predictions, targets))
    print(f"\nyolov7, 5 to 100 objects an image: plain {theirs:.1f} ms, ours {ours:.1f} ms ({ours / theirs:.2f})")
    predictions, targets = random_case(16, 640, arguments.classes, [20] * 16)
    theirs = milliseconds(lambda: loss_step(predictions, targets, PLAIN["yolov7"]))
    ours = milliseconds(lambda: loss_step(predictions, targets, Yolov7Assigner().assign))
    matches = Yolov7Assigner().assign(predictions, targets)
    loss = milliseconds(lambda: loss_step(predictions, targets, lambda *_: matches))
    print(f"its loss forward and backward, 20 objects: plain {theirs:.1f} ms, ours {ours:.1f} ms", end="")
    print(f" ({ours / theirs:.2f}); without assignment {loss:.1f} ms")


if __name__ == "__main__":
    main()
