"""Asking a large language model over an OpenAI-compatible API: the plan of a run, its pace, its budget, its failures."""
