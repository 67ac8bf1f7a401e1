"""The sub-commands of the served path, one file each."""
