"""`python -m perfsuite`."""

from perfsuite.cli import main

if __name__ == "__main__":
    main()
