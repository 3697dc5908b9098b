"""Points of a space from the most probable one down, where the keys are independent; made one by one as they are asked.

A point's successors are those in which one key has its next best option. Each is as probable at most, so that the heap
always has the next one on top (best-first enumeration; Lawler 1972, Management Science 18(7)).
"""

import heapq
import math
from collections.abc import Iterator, Sequence

__all__ = ["likeliest"]


def likeliest(probabilities: Sequence[Sequence[float]]) -> Iterator[tuple[int, ...]]:
    """Yield each point once, as the place of an option for each key, the most probable first.

    Of equally probable points the order is always the same.

    Args:
        probabilities: Of the options of each key.
    """
    ranked = [sorted(range(len(each)), key=lambda place, each=each: -each[place]) for each in probabilities]  # type: ignore[misc] # mypy cannot type a default that binds a loop's value
    losses = [
        [-math.log(max(each[place], math.ulp(0.0))) for place in order]
        for each, order in zip(probabilities, ranked, strict=True)
    ]
    first = (0,) * len(ranked)
    heap, seen = [(0.0, first)], {first}
    while heap:
        _, ranks = heapq.heappop(heap)
        yield tuple(order[rank] for order, rank in zip(ranked, ranks, strict=True))
        for number, rank in enumerate(ranks):
            successor = (*ranks[:number], rank + 1, *ranks[number + 1 :])
            if rank + 1 < len(ranked[number]) and successor not in seen:
                seen.add(successor)
                loss = math.fsum(each[place] for each, place in zip(losses, successor, strict=True))
                heapq.heappush(heap, (loss, successor))
