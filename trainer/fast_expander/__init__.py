"""Trains the matrix of a fast expander of the form `terms`."""
