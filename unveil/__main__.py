"""`python -m unveil` is the command `unveil`."""

from .cli import main

if __name__ == "__main__":
    main()
