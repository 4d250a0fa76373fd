"""Grades by stdout: a fresh Python runs the program with the test's stdin, and what it prints is compared."""

import subprocess
import sys
import tempfile

from grader_protocol import TIMEOUT_S, Unsupported, serve


def grade(request: dict) -> bool:
    if request.get("command") or any(test["type"] != "stdio" for test in request["tests"]):
        raise Unsupported("tests other than by stdin and stdout of a Python program")
    with tempfile.NamedTemporaryFile("w", suffix=".py", errors="surrogatepass") as file:
        file.write(request["program"])
        file.flush()
        return all(passes(file.name, test) for test in request["tests"])


def passes(program: str, test: dict) -> bool:
    try:
        done = subprocess.run(
            [sys.executable, program], input=test["stdin"].encode(), capture_output=True, timeout=TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return False
    printed = done.stdout.decode("utf-8", "replace")
    if test.get("checker"):
        scope: dict = {}
        exec(test["checker"], scope)
        try:
            return bool(scope["check"](test["stdin"], printed, test["stdout"]))
        except Exception:
            return False
    return printed.strip() == test["stdout"].strip()


if __name__ == "__main__":
    sys.exit(serve(grade))
