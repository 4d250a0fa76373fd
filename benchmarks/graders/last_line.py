"""Grades by a marker: the tests are appended to the program and print a line at their end, which must be the last."""

import subprocess
import sys
import tempfile

from grader_protocol import TIMEOUT_S, serve, test_source

MARKER = "ALL TESTS PASSED"


def grade(request: dict) -> bool:
    source = f"{request['program']}\n{test_source(request)}print({MARKER!r})\n"
    with tempfile.NamedTemporaryFile("w", suffix=".py", errors="surrogatepass") as file:
        file.write(source)
        file.flush()
        try:
            done = subprocess.run([sys.executable, file.name], capture_output=True, timeout=TIMEOUT_S, input=b"")
        except subprocess.TimeoutExpired:
            return False
    lines = done.stdout.decode("utf-8", "replace").strip().splitlines()
    return bool(lines) and lines[-1] == MARKER


if __name__ == "__main__":
    sys.exit(serve(grade))
