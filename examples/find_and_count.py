"""Count what a trained detector finds in pictures.

python examples/find_and_count.py demo/run-1/best.safetensors demo/data/unseen/*.jpg
"""

import sys
from collections import Counter

import detloom


def main(artifact: str, *pictures: str) -> None:
    """Print one line for each picture."""
    detector = detloom.load(artifact)
    for found in detector.predict(list(pictures)):
        counts = Counter(found.names[label] for label in found.labels_N.tolist())
        print(found.source, ", ".join(f"{count} x {name}" for name, count in counts.items()) or "nothing")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        print(f"usage: python {sys.argv[0]} ARTIFACT PICTURE...", file=sys.stderr)
        sys.exit(2)
    try:
        main(*sys.argv[1:])
    except detloom.DetloomError as error:
        # A mistake that the user can mend; the message says how.
        print(error, file=sys.stderr)
        sys.exit(2)
