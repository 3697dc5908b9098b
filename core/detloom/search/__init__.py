"""Architecture search: a space of recipes, what is wanted of them, and the trials that were made."""
