"""An engine of local processes, which stay warm from step to step."""

import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from flexswitch.codecs.errors import ExitStatus
from flexswitch.recipes.digests import Digests
from flexswitch.recipes.execute import Task
from flexswitch.recipes.step_run import Event, Failure, open_log, run_step

_PATIENCE = 5.0  # seconds that a process has to end by itself


class Processes:
    """Runs tasks in worker processes, one in each."""

    counts_room = False

    def __init__(self, slots: int, threads: int) -> None:
        self.slots = slots
        self._context = multiprocessing.get_context("spawn")
        self._threads = threads
        self._idle: list[_Worker] = []
        self._busy: dict[Any, _Worker] = {}

    def start(self, task: Task) -> None:
        """Gives a task to an idle process, or to a new one."""
        worker = self._idle.pop() if self._idle else _Worker(self._context, self._threads)
        worker.task = task
        worker.pipe.send(task)
        self._busy[worker.pipe] = worker

    def wait(self, seconds: float) -> list[Event]:
        """Returns what the processes have told; a process that died ends its task."""
        events = []
        for pipe in wait(list(self._busy), seconds):
            worker = self._busy[pipe]
            try:
                event: Event = worker.pipe.recv()
            except (EOFError, OSError):
                event = worker.death()
                del self._busy[pipe]
            else:
                if not isinstance(event.news, str):
                    self._idle.append(self._busy.pop(pipe))
            events.append(event)
        return events

    def close(self) -> None:
        """Interrupts what runs, and ends the processes."""
        workers = [*self._idle, *self._busy.values()]
        for worker in self._busy.values():
            if worker.process.pid is not None and worker.process.is_alive():
                os.kill(worker.process.pid, signal.SIGINT)
        for worker in workers:
            worker.pipe.close()
        for worker in workers:
            worker.process.join(_PATIENCE)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
        self._idle, self._busy = [], {}


class _Worker:
    """A process and the pipe to it."""

    def __init__(self, context: Any, threads: int) -> None:
        self.pipe, other = context.Pipe()
        self.process: BaseProcess = context.Process(target=_work, args=(other, threads), daemon=True)
        self.process.start()
        other.close()
        self.task: Task | None = None

    def death(self) -> Event:
        """Returns the end of the task with which the process died."""
        self.process.join(_PATIENCE)
        status = self.process.exitcode
        ended = f"by signal {-status}" if status is not None and status < 0 else f"with status {status}"
        message = f"its process was ended {ended}; where the memory was full, run fewer at once (--jobs)"
        assert self.task is not None
        return Event(self.task.number, Failure(message, int(ExitStatus.INPUT)))


def _work(pipe: Connection, threads: int) -> None:
    """Runs tasks until the pipe is closed. Everything that they print goes to their logs."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ.setdefault(name, str(threads))
    digests = Digests()
    try:
        while True:
            task: Task = pipe.recv()
            with open_log(task) as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
                pipe.send(run_step(task, digests, log, pipe.send))
    except (EOFError, OSError, KeyboardInterrupt):
        sys.exit(0)


def _end_with_parent() -> None:
    """Ends this process when the one that started it has died: nobody would hear what it tells."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
