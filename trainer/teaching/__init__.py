"""Candidate expansions from teachers."""
