"""What assigners do on one picture, to be looked at: computed, drawn as a sheet, written as a page."""
