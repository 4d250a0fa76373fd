"""Grades by exit status: the tests are appended to the program, a fresh Python runs both, status 0 is a pass."""

import subprocess
import sys
import tempfile

from grader_protocol import TIMEOUT_S, serve, test_source


def grade(request: dict) -> bool:
    source = request["program"] + "\n" + test_source(request)
    with tempfile.NamedTemporaryFile("w", suffix=".py", errors="surrogatepass") as file:
        file.write(source)
        file.flush()
        try:
            quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            return subprocess.run([sys.executable, file.name], timeout=TIMEOUT_S, **quiet).returncode == 0
        except subprocess.TimeoutExpired:
            return False


if __name__ == "__main__":
    sys.exit(serve(grade))
