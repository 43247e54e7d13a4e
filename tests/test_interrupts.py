"""The promises of interruption: a flag, seen between steps; handlers that are given back."""

import os
import signal
import threading

import pytest

from alexnet_lib import interrupts
from alexnet_lib.interrupts import Interrupted

pytestmark = pytest.mark.skipif(os.name != "posix", reason="other systems have no such signals")

NAMES = ("SIGINT", "SIGTERM", "SIGHUP")


@pytest.mark.parametrize("name", NAMES)
def test_a_signal_is_seen_where_the_program_looks(name):
    number = getattr(signal, name)
    with interrupts.handled(NAMES):
        interrupts.check()
        os.kill(os.getpid(), number)
        with pytest.raises(Interrupted, match=f"interrupted by {name}") as raised:
            interrupts.check()
        assert raised.value.number == number
        assert isinstance(raised.value, KeyboardInterrupt)
        with pytest.raises(Interrupted):  # it is not forgotten
            interrupts.check()
    interrupts.check()


def test_within_a_step_nothing_is_raised():
    with interrupts.handled():
        with interrupts.postponed():
            os.kill(os.getpid(), signal.SIGINT)
            interrupts.check()
        with pytest.raises(Interrupted):
            interrupts.check()


def test_a_second_interrupt_is_raised_at_once():
    with interrupts.handled():
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_handlers_are_given_back_whatever_happens():
    before = [signal.getsignal(getattr(signal, name)) for name in NAMES]
    with interrupts.handled(NAMES):
        assert [signal.getsignal(getattr(signal, name)) for name in NAMES] != before
    assert [signal.getsignal(getattr(signal, name)) for name in NAMES] == before
    with pytest.raises(ZeroDivisionError), interrupts.handled(NAMES):
        _ = 1 / 0
    assert [signal.getsignal(getattr(signal, name)) for name in NAMES] == before


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda number, frame: None])
def test_what_a_program_has_chosen_for_a_signal_stays(handler):
    before = signal.signal(signal.SIGHUP, handler)  # SIG_IGN, as nohup does
    try:
        with interrupts.handled(NAMES):
            assert signal.getsignal(signal.SIGHUP) is handler
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_inner_block_changes_nothing():
    with interrupts.handled(NAMES):
        outer = signal.getsignal(signal.SIGTERM)
        with interrupts.handled():
            os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is outer
        with pytest.raises(Interrupted, match="SIGTERM"):
            interrupts.check()


def test_other_threads_handle_no_signals():
    before, seen = signal.getsignal(signal.SIGINT), []

    def work():
        with interrupts.handled():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def test_other_threads_are_not_stopped_and_postpone_nothing():
    entered, seen = threading.Event(), []

    def work():
        with interrupts.postponed():
            entered.set()
        interrupts.check()
        seen.append("went on")

    with interrupts.handled():
        os.kill(os.getpid(), signal.SIGINT)
        with interrupts.postponed():
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
            interrupts.check()
        with pytest.raises(Interrupted):
            interrupts.check()
    assert entered.is_set()
    assert seen == ["went on"]


def test_a_system_without_a_signal_has_the_others(monkeypatch):
    monkeypatch.delattr(signal, "SIGHUP")  # as Windows
    with interrupts.handled(NAMES):
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted, match="SIGTERM"):
            interrupts.check()
