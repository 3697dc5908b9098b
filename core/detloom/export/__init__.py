"""From a trained detector to a file that a device runs, with a measured loss."""
