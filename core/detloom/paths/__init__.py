"""Ways of the gradient through a detector: traced, counted, told, drawn."""
