"""Builds a fast expander from an index: its documents read, encoded and cut into terms."""
