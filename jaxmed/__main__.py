"""``python -m jaxmed``."""

from jaxmed._cli.app import main

main()
