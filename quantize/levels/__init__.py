"""Smaller files of a GGUF model."""
