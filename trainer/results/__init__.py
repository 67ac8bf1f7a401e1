"""The table of what every stage of training brought."""
