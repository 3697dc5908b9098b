"""Pure functions: boxes, overlaps, suppression, scaling. None of them holds state."""
