"""`python -m hwm` is `hwm`."""

from hwm.cli import main

if __name__ == "__main__":
    main()
