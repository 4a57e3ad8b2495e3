"""``python -m jaxmed``."""

from jaxmed.cli import main

main()
