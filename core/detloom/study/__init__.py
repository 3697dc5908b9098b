"""Studies: a recipe varied, each variant trained with several seeds, and what the differences are worth."""
