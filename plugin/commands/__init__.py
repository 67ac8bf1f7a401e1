"""The sub-commands of `querylift` that serve searches and prepare expansions, one file each."""
