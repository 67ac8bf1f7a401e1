"""The embedded language model: llama.cpp in a worker process."""
