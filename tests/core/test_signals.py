"""Stop requests: a note while training, an exception elsewhere, the end at the second Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from effvit_train.signals import SIGNALS, Interrupted, Stop


def send(signum: int) -> None:
    os.kill(os.getpid(), signum)
    time.sleep(0.01)  # the handler runs between two steps of the interpreter


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_signal_ends_the_work_at_once_or_leaves_a_note(signum):
    with pytest.raises(Interrupted) as caught, Stop():
        send(signum)
    assert caught.value.signum == signum
    with Stop() as stop:
        stop.defer(True)
        send(signum)
        assert stop.requested == signum
        with pytest.raises(Interrupted):
            stop.check()
        send(signal.SIGTERM)  # once is enough: what is being written is finished
        assert stop.requested == signum


def test_a_signal_before_training_is_not_forgotten():
    with Stop() as stop:
        with pytest.raises(Interrupted):
            send(signal.SIGTERM)  # and a library swallows it
        with pytest.raises(Interrupted):
            stop.defer(True)


def test_handlers_are_put_back_and_entering_twice_changes_nothing():
    before = signal.getsignal(signal.SIGTERM)
    stop = Stop()
    with stop:
        with stop:
            pass
        assert signal.getsignal(signal.SIGTERM) == stop._handle
    assert signal.getsignal(signal.SIGTERM) == before


def test_an_exception_handler_for_errors_does_not_swallow_it():
    assert not issubclass(Interrupted, Exception)


TWICE = """
import os, signal, sys, time
from effvit_train.signals import Stop
with Stop() as stop:
    stop.defer(True)
    os.kill(os.getpid(), signal.SIGINT)
    stop.listen()  # a library puts back what it found
    print("after one", flush=True)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(5)
    print("after two", flush=True)
"""


def test_the_second_ctrl_c_ends_the_process_at_once():
    done = subprocess.run([sys.executable, "-c", TWICE], capture_output=True, text=True)
    assert done.returncode == -signal.SIGINT
    assert done.stdout == "after one\n"
    assert "Ctrl-C once more ends at once" in done.stderr


FORKED = """
import os, signal, time
from effvit_train.signals import Stop
with Stop() as stop:
    child = os.fork()
    if child == 0:
        time.sleep(0.5)
        os._exit(7)
    os.kill(child, signal.SIGTERM)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_process_leaves_signals_to_its_parent():
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True)
    assert done.stdout == "7\n"
