"""A real search engine on this machine."""
