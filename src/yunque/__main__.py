"""`python -m yunque` is the `yunque` command."""

from yunque.cli.main import run

if __name__ == "__main__":
    run()
