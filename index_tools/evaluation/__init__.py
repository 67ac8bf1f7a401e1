"""Measures, paired tests and reports."""
