"""Clicks of an experiment: read with the log of searches, joined, and compared by variant."""
