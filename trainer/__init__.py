"""A small student taught by a large model, then by the search engine (arXiv 2603.13776)."""
