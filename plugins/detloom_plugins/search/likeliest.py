"""Points of a space from the most probable one down, where the keys are independent; made one by one as they are asked.

A point's successors are those in which one key has its next best option. Each is as probable at most, so that the heap
always has the next one on top (best-first enumeration; Lawler 1972, Management Science 18(7)).
"""

import heapq
import math
from collections.abc import Iterator, Mapping, Sequence

__all__ = ["likeliest"]


def likeliest(probabilities: Mapping[str, Sequence[float]]) -> Iterator[dict[str, int]]:
    """Yield each point once, as the index of an option for each key, the most probable first.

    Of equally probable points the order is always the same.

    Args:
        probabilities: Of each option, by key.
    """
    keys = list(probabilities)
    ranked = [sorted(range(len(each)), key=lambda index, each=each: -each[index]) for each in probabilities.values()]  # type: ignore[misc] # mypy cannot type a default that binds a loop's value
    losses = [
        [-math.log(max(probabilities[key][index], math.ulp(0.0))) for index in order]
        for key, order in zip(keys, ranked, strict=True)
    ]

    def loss(places: tuple[int, ...]) -> float:
        return math.fsum(losses[key][place] for key, place in enumerate(places))

    first = (0,) * len(keys)
    heap, seen = [(loss(first), first)], {first}
    while heap:
        _, places = heapq.heappop(heap)
        yield {key: ranked[number][place] for number, (key, place) in enumerate(zip(keys, places, strict=True))}
        for number, place in enumerate(places):
            if place + 1 == len(ranked[number]):
                continue
            successor = (*places[:number], place + 1, *places[number + 1 :])
            if successor not in seen:
                seen.add(successor)
                heapq.heappush(heap, (loss(successor), successor))
