"""A Hugging Face folder as a GGUF model."""
