"""`python -m ponder` is the command `ponder`."""

from ponder.cli import app

if __name__ == "__main__":
    app(prog_name="ponder")
