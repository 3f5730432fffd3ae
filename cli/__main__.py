"""Runs the command line as `python -m flexswitch.cli`."""

from flexswitch.cli.main import main

if __name__ == "__main__":
    main()
