"""From trained weights to the GGUF files that are served."""
