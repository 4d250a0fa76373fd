"""Grades in a child process: program and tests by exec() in one namespace, the result over a multiprocessing pipe."""

import contextlib
import io
import multiprocessing
import sys

from grader_protocol import TIMEOUT_S, serve, test_source


def child(connection, source: str) -> None:
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            exec(source, {"__name__": "program"})
        connection.send("passed")
    except BaseException as error:
        connection.send(f"failed: {error}")


def grade(request: dict) -> bool:
    ours, theirs = multiprocessing.Pipe()
    source = request["program"] + "\n" + test_source(request)
    process = multiprocessing.get_context("fork").Process(target=child, args=(theirs, source))
    process.start()
    theirs.close()
    try:
        return bool(ours.poll(TIMEOUT_S)) and ours.recv() == "passed"
    except (EOFError, OSError):
        return False
    finally:
        process.kill()
        process.join()


if __name__ == "__main__":
    sys.exit(serve(grade))
