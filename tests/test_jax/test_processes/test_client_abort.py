"""When JAX's client ends the process, what it writes becomes a call of ours; all else on stderr stays as it is."""

import signal
import subprocess
import sys

import pytest

PROGRAM = """
import os, sys
from stellarbyte_jax.processes.client_abort import call_at_abort

def then(said):
    print(f"then: {len(said.splitlines())} lines", flush=True)
    os._exit(75)

call_at_abort(then)
os.write(2, sys.argv[1].encode())
print("by Python", file=sys.stderr)
os.abort()
"""

WARNING = "W1129 13:14:42.134078   31487 slow_operation_alarm.cc:73] compiling is slow\nand has been for long\n"
POLLED = "E1129 13:14:42.134078   31487 coordination_service_agent.cc:289] Polled an error\n"
FATAL = (
    "F1129 13:14:42.134110   31487 client.h:80] Terminating process because the JAX distributed service detected fatal "
    "errors. This most likely indicates that another task died\n*** Check failure stack trace: ***\n    @ 0x7fabc\n"
)


@pytest.mark.parametrize(
    ("written", "code", "out", "shown"),
    [
        (WARNING + POLLED + FATAL, 75, "then: 4 lines\n", WARNING),
        (POLLED + WARNING, -signal.SIGABRT, "", WARNING + POLLED),
        ("an assertion has failed\n", -signal.SIGABRT, "", "an assertion has failed\n"),
    ],
)
def test_only_the_abort_of_the_client_becomes_a_call(written: str, code: int, out: str, shown: str) -> None:
    ran = subprocess.run([sys.executable, "-c", PROGRAM, written], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (code, out)
    assert ran.stderr.replace("by Python\n", "", 1) == shown
