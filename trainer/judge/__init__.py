"""The relevance judge: a large model annotates pairs of query and document, and a six-layer BERT learns from it."""
