"""``python -m apportion`` is the command ``allocate``."""

from .cli import main

main()
