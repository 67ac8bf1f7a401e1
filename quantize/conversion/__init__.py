"""Convert a Hugging Face folder to a GGUF model."""
