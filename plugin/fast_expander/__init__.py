"""The fast expander's model files: an encoder, and the index's terms by vector or by matrix."""
