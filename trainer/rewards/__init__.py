"""What a candidate expansion is worth, measured on the engine."""
