"""`perfsuite` and `python -m perfsuite`. Light, because each spawned process imports the main module again."""


def main() -> None:
    """Entry point of the `perfsuite` command."""
    from perfsuite.cli import main as run_command

    run_command()


if __name__ == "__main__":
    main()
