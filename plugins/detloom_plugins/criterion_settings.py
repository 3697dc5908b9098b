"""What criteria refuse in their settings: weights and powers with which a loss rewards mistakes, or has no gradient."""

from collections.abc import Mapping

from detloom.errors import RecipeError

__all__ = ["check_share", "check_sharpness", "check_weights"]


def check_weights(weights: Mapping[str, float]) -> None:
    """Refuse weights, by name, that are negative: what they weigh would be learned the wrong way round."""
    for name, value in weights.items():
        if value < 0:
            raise RecipeError(f"{name} must not be negative, got {value}; 0 leaves it out")


def check_share(name: str, value: float, published: float) -> None:
    """Refuse a weight of one side that leaves the other less than nothing."""
    if not 0 <= value <= 1:
        raise RecipeError(f"{name} must lie in [0, 1], got {value}; published is {published}")


def check_sharpness(name: str, value: float, published: float) -> None:
    """Refuse a power whose gradient is infinite for perfect answers."""
    if value != 0 and value < 1:
        raise RecipeError(f"{name} must be 0, or at least 1, got {value}; published is {published}")
