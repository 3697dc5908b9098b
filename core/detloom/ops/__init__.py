"""Pure tensor functions: boxes, overlaps, suppression. None of them holds state."""
