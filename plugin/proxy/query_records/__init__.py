"""Records of queries in the shape of User Behavior Insights 1.3, written to a file or into an index of the engine."""
