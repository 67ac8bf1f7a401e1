"""Which smaller file searches as well as the whole one."""
