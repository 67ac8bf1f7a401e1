"""The fast expander: the index's own terms, by a small encoder and without decoding."""
