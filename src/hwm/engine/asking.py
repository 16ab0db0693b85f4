"""Asking a child process one question, with a time limit that holds whatever the child does.

question + argument -> the child's JSON answer, or one line that says why there is none
"""

import json
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

MODULE = "hwm.engine.doctor_child"
NO_ANSWER = "no answer within"
"""How an answer begins that did not come in time."""
_END_TIMEOUT_SEC = 2.0


def ask(question: str, argument: object = None, timeout_sec: float = 60.0) -> dict[str, Any] | str:
    """Run `hwm.engine.doctor_child` for one question.

    Args:
        question: its name there.
        argument: plain data.
        timeout_sec: seconds it may take; then it is ended.

    Returns:
        Its answer; or the reason why there is none: too slow, or the last line of its log.
    """
    source = str(Path(__file__).parents[2])  # the child finds this same package, installed or not
    paths = os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", MODULE, question, json.dumps(argument)]
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as log:  # pipes would block a talkative child
        try:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=log, env=os.environ | {"PYTHONPATH": paths}
            )
        except OSError as error:
            return f"it cannot be asked: {error.strerror or error}"
        try:
            code = child.wait(timeout_sec)
        except subprocess.TimeoutExpired:
            child.kill()
            with suppress(subprocess.TimeoutExpired):
                child.wait(_END_TIMEOUT_SEC)  # a process that sleeps in the kernel is not waited for longer
            return f"{NO_ANSWER} {timeout_sec:g} s"
        output.seek(0)
        log.seek(0)
        if code == 0:
            with suppress(ValueError):
                return json.loads(output.read())
        lines = log.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"it ended with code {code}"
