"""The student model: loading and saving it, training it, and sampling expansions from it."""
