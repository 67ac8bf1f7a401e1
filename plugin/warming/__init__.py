"""Expansions made ahead of traffic."""
