"""Connections to an engine: its nodes, the account and certificates that it asks for, and what it is asked once."""
