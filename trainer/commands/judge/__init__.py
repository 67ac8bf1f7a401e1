"""`querylift judge`: one module for each command."""
