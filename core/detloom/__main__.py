"""``python -m detloom`` is the command ``detloom``."""

from detloom.cli import main

main()
