"""Where expansions come from. `base` has the seam; each other module is one source."""
