"""Settings of training runs, every value commented."""
