"""The sub-commands of quantize, one file a command."""
