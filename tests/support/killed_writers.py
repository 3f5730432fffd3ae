"""A process that holds a working folder, to be killed."""

import signal
import subprocess
import sys
from pathlib import Path

WRITER = """
import sys
from pathlib import Path
from flexswitch.codecs.format.working_folder import set_aside, working_folder
path = Path(sys.argv[1])
with working_folder(path) as folder:
    (folder / "half").write_bytes(b"half")
    if path.exists():
        set_aside(path, folder)
    print(folder, flush=True)
    sys.stdin.read()
"""


def start_writer(path: Path) -> tuple[subprocess.Popen[str], Path]:
    """Starts a process that holds a working folder; returns it and the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()
