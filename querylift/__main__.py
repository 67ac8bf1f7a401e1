"""`python -m querylift` runs the same command as `querylift`."""

from querylift.plugin.commands.main import main

main()
