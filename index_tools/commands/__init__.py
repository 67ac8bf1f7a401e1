"""The commands of index_tools, one file each."""
