"""Runs the command line by `python -m flexswitch.cli`."""

import atexit
import os
import sys

from flexswitch.cli.main import main

if __name__ == "__main__":
    try:
        main()
    except SystemExit as stop:
        if stop.code == 130:
            # Python would end by the signal itself where that came while a text was executed, not in 130.
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(130)
        raise
