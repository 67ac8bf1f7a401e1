"""Read LoRA adapters as PEFT saves them, write them as GGUF, and merge them into a model."""
