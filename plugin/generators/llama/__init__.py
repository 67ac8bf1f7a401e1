"""The generator `llama`: a small language model that llama.cpp runs in a worker process."""
