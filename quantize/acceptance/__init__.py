"""Find the smallest quantised file that searches as well as the full one."""
