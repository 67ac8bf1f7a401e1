"""Make smaller, quantised files of a GGUF model."""
