"""`python -m bayesprompt` is the command line."""

from bayesprompt.cli import main

main()
