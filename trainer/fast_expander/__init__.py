"""Training of the fast expander's matrix."""
