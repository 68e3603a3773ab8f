"""The first signal asks, the second one insists, and the handlers go back to where they were."""

import os
import signal
import threading

import pytest

from stellarbyte.interrupt import SIGNALS, Interrupt


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_the_first_signal_only_asks(number: int, capfd: pytest.CaptureFixture[str]) -> None:
    before = [signal.getsignal(each) for each in SIGNALS]
    with Interrupt() as interrupt:
        assert not interrupt.requested
        os.kill(os.getpid(), number)
        assert interrupt.requested
    assert [signal.getsignal(each) for each in SIGNALS] == before
    assert f"{signal.Signals(number).name}: finishing this step" in capfd.readouterr().err


def test_the_second_signal_stops_at_once_and_handlers_return() -> None:
    before = signal.getsignal(signal.SIGTERM)

    def twice() -> None:
        with Interrupt():
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        twice()
    assert signal.getsignal(signal.SIGTERM) is before


def test_outside_the_main_thread_it_does_nothing() -> None:
    seen = []

    def enter() -> None:
        with Interrupt() as interrupt:
            seen.append((interrupt.requested, signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [(False, signal.getsignal(signal.SIGINT))]


def test_a_program_that_is_not_our_own_is_never_ended() -> None:
    with Interrupt(program=None) as interrupt:
        interrupt.give_up_after(0.01, lambda: "not saved")
        os.kill(os.getpid(), signal.SIGTERM)
        grace = next(thread for thread in threading.enumerate() if thread.name == "grace")
        grace.join(10)
        assert not grace.is_alive() and interrupt.number == signal.SIGTERM


def test_a_block_that_is_entered_again_still_knows_of_the_first_signal() -> None:
    before = [signal.getsignal(each) for each in SIGNALS]
    interrupt = Interrupt(program=None)
    with interrupt:
        pass
    with interrupt:
        assert not interrupt.requested
        os.kill(os.getpid(), signal.SIGUSR1)
        assert interrupt.requested
    with interrupt:
        assert interrupt.requested and interrupt.number == signal.SIGUSR1
        assert signal.getsignal(signal.SIGTERM) == before[SIGNALS.index(signal.SIGTERM)], "the next one is the second"
    assert [signal.getsignal(each) for each in SIGNALS] == before
