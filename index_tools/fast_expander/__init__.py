"""Builds a fast expander from an index: reads and encodes its documents, and writes the files that are served."""
