"""Collect candidates from a teacher, from files, from relevant documents and from a fast expander."""
