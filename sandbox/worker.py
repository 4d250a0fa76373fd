"""The process that runs hostile code. Started by sandbox/pool.py as a script; standard library only.

It reads requests from stdin and writes answers to stdout, both as a 4-byte length and JSON. For each program it forks
a child with limits of its own, a fresh session and a fresh empty folder; what the child says comes back through a
pipe in frames that begin with a nonce. The child never sees expected values of call and stdio tests: its answers
are compared by the parent of this process.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import resource
import select
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from typing import IO, Any

# What programs of this kind import: loaded once, so that a fresh child finds it in memory.
PRELOADED = (
    "array", "bisect", "collections", "copy", "datetime", "decimal", "fractions", "functools", "hashlib", "heapq",
    "io", "itertools", "math", "operator", "random", "re", "statistics", "string", "typing",
)  # fmt: skip
MAX_MESSAGE, MAX_OUTPUT = 500, 2000  # characters kept
CHILD_STATUSES = ("ran", "wrong_answer", "runtime_error", "syntax_error", "memory")
CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWNET = 0x08000000, 0x10000000, 0x40000000
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 36, 38
libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """Serves requests until stdin ends."""
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    layers = isolate()
    for name in PRELOADED:
        __import__(name)
    gc.disable()
    gc.freeze()
    write_frame(answers, {"layers": layers, "pid": os.getpid()})
    while (request := read_frame(requests)) is not None:
        write_frame(answers, serve(request))


def isolate() -> dict[str, str]:
    """Takes away what the kernel lets an ordinary process give up; what is active, by layer."""
    layers = {}
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    uid, gid = os.getuid(), os.getgid()
    namespaces = CLONE_NEWNET | CLONE_NEWIPC
    if libc.unshare(namespaces if uid == 0 else namespaces | CLONE_NEWUSER) == 0:
        layers["network"] = layers["ipc"] = "own namespace"
        if uid != 0:
            for path, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
                with contextlib.suppress(OSError), open(f"/proc/self/{path}", "w") as f:
                    f.write(text)
    else:
        layers["network"] = layers["ipc"] = f"shared with the host: {os.strerror(ctypes.get_errno())}"
    layers["no_new_privileges"] = "on" if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 else "off"
    layers["limits"] = "rlimits"
    return layers


def read_frame(stream: IO[bytes]) -> Any:
    header = stream.read(4)
    if len(header) < 4:
        return None
    return json.loads(stream.read(struct.unpack("<I", header)[0]))


def write_frame(stream: IO[bytes], value: Any) -> None:
    data = json.dumps(value).encode()
    stream.write(struct.pack("<I", len(data)) + data)
    stream.flush()


def serve(request: dict[str, Any]) -> dict[str, Any]:
    """Runs one program: all its in-process tests in one child, each stdio test in a child of its own."""
    code, tests, limits = request["code"], request["tests"], request["limits"]
    deadline = time.monotonic() + limits["wall_s"]
    answer: dict[str, Any] = {"results": [], "stdout": "", "stderr": "", "cpu_s": 0.0}
    start = time.monotonic()
    in_process = [t for t in tests if t["type"] != "stdio"]
    for test in tests if not in_process else [None]:
        if answer["results"] and request["stop"] and answer["results"][-1]["status"] != "ran":
            break
        run = [test] if test else in_process
        stdin = test["stdin"] if test else ""
        out = run_child(code, run, stdin, limits, deadline, limits["cpu_s"] - answer["cpu_s"], request["stop"])
        answer["results"] += out["results"]
        answer["cpu_s"] += out["cpu_s"]
        answer["stdout"], answer["stderr"] = out["stdout"][:MAX_OUTPUT], out["stderr"][-MAX_OUTPUT:]
    answer["wall_s"] = time.monotonic() - start
    return answer


def run_child(
    code: str, tests: list[dict], stdin: str, limits: dict, deadline: float, cpu_s: float, stop: bool
) -> dict[str, Any]:
    """Forks a child for the tests, watches it, and says how each test went.

    A result is {"status": "ran", "value": ...} where the child gave a value to compare, else a final status.
    """
    nonce, folder = os.urandom(16).hex(), tempfile.mkdtemp(prefix="sandbox-")
    pipes = {name: os.pipe() for name in ("frames", "stdout", "stderr")}
    given = os.memfd_create("stdin")
    os.write(given, stdin.encode("utf-8", "surrogatepass"))
    os.lseek(given, 0, os.SEEK_SET)
    pid = os.fork()
    if pid == 0:
        try:
            become_candidate(folder, given, {name: w for name, (_, w) in pipes.items()}, limits, cpu_s)
            candidate(code, tests, nonce, 3, stop)
        finally:
            os._exit(0)
    os.close(given)
    for _, w in pipes.values():
        os.close(w)
    try:
        outputs, cause = watch(pid, {name: r for name, (r, _) in pipes.items()}, limits, deadline, cpu_s)
    finally:
        status, cpu = kill_all(pid)
        shutil.rmtree(folder, ignore_errors=True)
    results, done = parse_frames(outputs["frames"], nonce)
    stdout = outputs["stdout"].decode("utf-8", "replace")
    if tests[0]["type"] == "stdio" and results and results[0]["status"] == "ran":
        results[0]["value"] = stdout
    if not done or cause:
        results += [ended_early(status, cause, cpu, cpu_s)] if len(results) < len(tests) else []
        if cause and len(results) == len(tests) and not done:
            results[-1] = ended_early(status, cause, cpu, cpu_s)
    missing = {"status": "not_run", "message": "not run: the program had ended"}
    if not stop:
        results += [missing] * (len(tests) - len(results))
    return {"results": results, "stdout": stdout, "stderr": outputs["stderr"].decode("utf-8", "replace"), "cpu_s": cpu}


def become_candidate(folder: str, given: int, pipes: dict[str, int], limits: dict, cpu_s: float) -> None:
    """Limits, file descriptors, environment and folder of the child."""
    os.setsid()
    for source, target in ((given, 0), (pipes["stdout"], 1), (pipes["stderr"], 2)):
        os.dup2(source, target)
    frames = os.dup2(os.dup(pipes["frames"]), 250)
    os.closerange(3, 250)
    os.dup2(frames, 3, inheritable=False)
    os.closerange(4, 65536)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(PATH="/usr/bin:/bin", HOME=folder, TMPDIR=folder, LANG="C.UTF-8")
    memory = limits["memory_mb"] << 20
    seconds = max(1, int(cpu_s + 0.999))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))  # SIGXCPU first: it says why
    for kind, value in (
        (resource.RLIMIT_AS, memory + current_size()),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 16 << 20),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_NPROC, limits["processes"]),
    ):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (value, value))


def current_size() -> int:
    """Address space that this process has already, in bytes."""
    with open("/proc/self/statm") as f:
        return int(f.read().split()[0]) * resource.getpagesize()


def watch(pid: int, pipes: dict[str, int], limits: dict, deadline: float, cpu_s: float) -> tuple[dict[str, bytes], str]:
    """Reads the pipes until the child's end or a limit; what was read, and "" or the limit that was reached."""
    names = {fd: name for name, fd in pipes.items()}
    outputs = {name: bytearray() for name in pipes}
    room = {"frames": 8 << 20, "stdout": limits["output_kb"] << 10, "stderr": limits["output_kb"] << 10}
    poll, cause, child = select.poll(), "", os.pidfd_open(pid)
    for fd in names:
        poll.register(fd, select.POLLIN)
    poll.register(child, select.POLLIN)
    alive = True
    while alive and not cause:
        left = deadline - time.monotonic()
        events = poll.poll(min(max(left, 0) * 1000, 50))
        if left <= 0:
            cause = "timeout"
        elif len(descendants(os.getpid())) > limits["processes"] + 1:
            cause = "processes"
        for fd, _ in events:
            if fd == child:
                alive = False
                continue
            data = os.read(fd, 65536)
            if not data:
                poll.unregister(fd)
            outputs[names[fd]] += data
            if len(outputs[names[fd]]) > room[names[fd]]:
                cause = "output_limit"
    for fd, name in names.items():  # what is still in the pipes; a surviving grandchild may hold them open
        os.set_blocking(fd, False)
        with contextlib.suppress(BlockingIOError):
            while not cause and (data := os.read(fd, 65536)):
                outputs[name] += data
                if len(outputs[name]) > room[name]:
                    cause = "output_limit"
        os.close(fd)
    os.close(child)
    return {name: bytes(data) for name, data in outputs.items()}, cause


def descendants(pid: int) -> list[int]:
    """All living processes below pid (children that fled to the subreaper, this process, among them)."""
    found = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children") as f:
                for child in map(int, f.read().split()):
                    found += [child, *descendants(child)]
    except OSError:
        pass
    return found


def kill_all(pid: int) -> tuple[int, float]:
    """Kills the child and all that it started, until none is left; its wait status and CPU seconds."""
    status, cpu = 0, 0.0
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    while True:
        for other in descendants(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(other, signal.SIGKILL)
        try:
            ended, how, usage = os.wait4(-1, 0)
        except ChildProcessError:
            return status, cpu
        cpu += usage.ru_utime + usage.ru_stime
        if ended == pid:
            status = how


def parse_frames(data: bytes, nonce: str) -> tuple[list[dict[str, Any]], bool]:
    """The results of the lines that carry the nonce, and whether the last one said that all was done."""
    results = []
    for line in data.split(b"\n"):
        head, _, body = line.partition(b" ")
        if head != nonce.encode():
            continue
        try:
            result = json.loads(body)
        except ValueError:
            result = None
        if result == "done":
            return results, True
        if not isinstance(result, dict) or result.get("status") not in CHILD_STATUSES:
            return results, False  # the program has tampered with what sends its results
        results.append(result)
    return results, False


def ended_early(status: int, cause: str, cpu: float, cpu_s: float) -> dict[str, Any]:
    """The result of the test during which the child ended."""
    if cause == "timeout":
        return {"status": "timeout", "message": "wall time limit"}
    if cause == "output_limit":
        return {"status": "output_limit", "message": "too much output"}
    if cause == "processes":
        return {"status": "killed", "message": "too many processes"}
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number == signal.SIGXCPU or (number == signal.SIGKILL and cpu >= cpu_s):
            return {"status": "timeout", "message": "CPU time limit"}
        return {"status": "killed", "message": f"killed by {signal.Signals(number).name}"}
    code = os.waitstatus_to_exitcode(status)
    return {"status": "runtime_error", "message": f"the program ended with exit code {code} before its tests"}


def candidate(code: str, tests: list[dict], nonce: str, channel: int, stop: bool) -> None:
    """In the child: runs the program, then its tests; a frame for each."""

    # The program may replace what modules hold; these names were bound before it ran.
    def send(body: Any, dumps: Callable = json.dumps, write: Callable = os.write) -> None:
        data = f"{nonce} {dumps(body)}\n".encode("utf-8", "surrogatepass")
        while data:
            data = data[write(channel, data) :]

    sys.stdin = open(0, encoding="utf-8", errors="replace", closefd=False)
    sys.stdout = open(1, "w", encoding="utf-8", errors="replace", closefd=False)
    sys.stderr = open(2, "w", encoding="utf-8", errors="replace", closefd=False)
    sys.argv, stdio = ["program.py"], tests[0]["type"] == "stdio"
    namespace: dict[str, Any] = {"__name__": "__main__" if stdio else "program", "__builtins__": __builtins__}
    try:
        compiled = compile(code, "program.py", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        failure = {"status": "syntax_error", "message": describe(error)}
    else:
        failure = attempt(lambda: exec(compiled, namespace), exit_is_success=stdio)
    if failure["status"] != "ran" or stdio:
        tests = tests[:1] if stop or stdio else tests
        for _ in tests:
            sys.stdout.flush()
            send(failure)
        send("done")
        return
    for test in tests:
        result = attempt(lambda test=test: run_test(test, namespace))
        sys.stdout.flush()
        send(result)
        if stop and result["status"] != "ran":
            break
    send("done")


def run_test(test: dict[str, Any], namespace: dict[str, Any]) -> Any:
    """The encoded value of a call test; None for a test that raises when it fails."""
    if test["type"] == "call":
        args, kwargs = decode(test["args"]), decode(test["kwargs"])
        return encode(namespace[test["function"]](*args, **kwargs))
    scope = dict(namespace)
    exec(compile(test["code"], "test.py", "exec", dont_inherit=True), scope)
    if test["type"] == "check":
        scope["check"](namespace[test["entry_point"]])
    return None


def attempt(action: Callable[[], Any], exit_is_success: bool = False) -> dict[str, Any]:
    """{"status": "ran", "value"} or the status and a short message of what was raised."""
    try:
        return {"status": "ran", "value": action()}
    except MemoryError:
        return {"status": "memory", "message": "MemoryError"}
    except AssertionError as error:
        return {"status": "wrong_answer", "message": describe(error)}
    except SystemExit as error:
        if exit_is_success and error.code in (None, 0):
            return {"status": "ran", "value": None}
        return {"status": "runtime_error", "message": f"SystemExit({error.code!r})"[:MAX_MESSAGE]}
    except BaseException as error:
        if exit_is_success:
            with contextlib.suppress(Exception):
                sys.stderr.write("".join(traceback.format_exception(error, limit=-3)))
                sys.stderr.flush()
        return {"status": "runtime_error", "message": describe(error)}


def describe(error: BaseException) -> str:
    """The exception with the last line of the program or the test that it passed through."""
    with contextlib.suppress(Exception):
        places = [f for f in traceback.extract_tb(error.__traceback__) if f.filename in ("program.py", "test.py")]
        where = f" ({places[-1].filename}, line {places[-1].lineno})" if places else ""
        return (traceback.format_exception_only(error)[-1].strip() + where)[:MAX_MESSAGE]
    return type(error).__name__


def encode(value: Any) -> Any:
    """Plain data as JSON, exact in type: [kind, content] for anything but None, bool, int, float and str.

    An object that is no plain data becomes ["object", its type's name], which equals nothing.
    """
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if kind in (list, tuple, set, frozenset):
        return [kind.__name__, [encode(v) for v in value]]
    if kind is dict:
        return ["dict", [[encode(k), encode(v)] for k, v in value.items()]]
    if kind is complex:
        return ["complex", [value.real, value.imag]]
    if kind in (bytes, bytearray):
        return [kind.__name__, value.hex()]
    bases: tuple[Any, ...] = (dict, list, tuple, set, frozenset, int, float, str)
    for base in bases:  # Counter, defaultdict, namedtuple, IntEnum, ...
        if isinstance(value, base):
            return encode(base(value))
    return ["object", kind.__name__]


def decode(value: Any) -> Any:
    """The inverse of `encode`."""
    if not isinstance(value, list):
        return value
    kind, content = value
    if kind in ("list", "tuple", "set", "frozenset"):
        make = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}[kind]
        return make(decode(v) for v in content)
    if kind == "dict":
        return {decode(k): decode(v) for k, v in content}
    if kind == "complex":
        return complex(*content)
    if kind in ("bytes", "bytearray"):
        return (bytes if kind == "bytes" else bytearray).fromhex(content)
    return Unplain(content)


class Unplain:
    """Stands for a value that is no plain data."""

    def __init__(self, type_name: str):
        self.type_name = type_name

    def __repr__(self) -> str:
        return f"<{self.type_name} object>"


if __name__ == "__main__":
    main()
