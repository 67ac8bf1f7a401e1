"""Warming: making expansions before any user asks for them, for the proxy's cache or for a table."""
