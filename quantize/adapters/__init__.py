"""LoRA adapters: read from PEFT, written as GGUF, merged into a model."""
