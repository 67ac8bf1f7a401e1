"""`querylift train`, one file a stage."""
