"""Make the GGUF files that Querylift serves from trained weights."""
