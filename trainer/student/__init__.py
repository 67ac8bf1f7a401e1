"""The student model: its weights, its training and its samples."""
