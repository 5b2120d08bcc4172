"""Programs that mean no good, run for real: none gets out, none counts as passed, none hangs, nothing is left."""

import os
import sys
import tempfile
import time
from pathlib import Path

import pytest

from unveil import sandbox
from unveil.sandbox import Limits, Result, Run, run, run_all

pytestmark = pytest.mark.skipif(os.name != "posix", reason="programs are confined by means of Unix")
QUICK = Limits(wall=120, cpu=10)  # a busy machine gives a process little of the time
KERNEL = os.name == "posix" and all(sandbox.guards().values())
guarded = pytest.mark.skipif(not KERNEL, reason="this kernel does not allow everything that confines a program")
TOUCH = "import subprocess; subprocess.run(['/usr/bin/env', 'touch', {!r}], check=True)"
LISTEN = "import subprocess, sys; subprocess.run([sys.executable, '-I', '-S', '-c', {!r}], check=True)"


def bare(program: str, limits: Limits = QUICK) -> Result:
    """As on a system whose kernel offers resource limits alone."""
    with tempfile.TemporaryDirectory() as place:
        return Run(program, limits, Path(place), time.monotonic(), kernel=False).finish()


def test_a_right_program_passes_and_says_what_it_printed():
    found = run("import math, sys\nprint('hello')\nprint('there', file=sys.stderr)\nassert math.comb(4, 2) == 6", QUICK)
    assert found.passed
    assert found.reason == "passed"
    assert "hello" in found.output
    assert "there" in found.output
    assert 0 < found.seconds < 120


ENDINGS = {
    "assert 1 == 2, 'one is not two'": ("exception", "AssertionError", 1),
    "x = 1\n\nx.y": ("exception", "AttributeError", 3),
    "def f():\n    return f()\nf()": ("exception", "RecursionError", 2),
    "x = (": ("exception", "SyntaxError", 1),
    "class Odd(Exception):\n    def __str__(self): raise KeyError\nraise Odd": ("exception", "Odd", 3),
    "class No(BaseException): pass\nraise No": ("exception", "No", 2),
    "import sys\nsys.exit(0)\nassert 1 == 2": ("exit", "SystemExit", 2),
    "raise SystemExit\nassert 1 == 2": ("exit", "SystemExit", 1),
    "import os\nos._exit(0)": ("exit", "0", None),
    "import os\nos._exit(7)": ("exit", "7", None),
    "import sys\nprint('{\"end\": \"0\"}'); print('passed'); sys.exit(0)": ("exit", "SystemExit", 2),
    "import atexit, os\natexit.register(os._exit, 0)\nassert 0": ("exception", "AssertionError", 3),
    "import os, sys\nsys.excepthook = lambda *_: os._exit(0)\nassert 0": ("exception", "AssertionError", 3),
    "import os\nos.abort()": ("killed", "SIGABRT", None),
    "import os\nif os.fork() == 0: os._exit(0)\nassert 0": ("exception", "AssertionError", 3),
    "x = bytearray(10**11)": ("memory", "MemoryError", 1),
    "open('a', 'wb').write(bytes(9 << 20))": ("exception", "OSError", 1),
    "files = [open(f'{i}', 'w') for i in range(100)]": ("exception", "OSError", 1),
    "'\ud800'.encode()": ("exception", "UnicodeEncodeError", None),
    "import numpy": ("exception", "ModuleNotFoundError", 1),
    "import unveil": ("exception", "ModuleNotFoundError", 1),
}
if not KERNEL:  # then nothing forks at all
    ENDINGS = {program: end for program, end in ENDINGS.items() if "fork" not in program}


def test_every_way_to_end_is_told_apart():
    for program, found in zip(ENDINGS, run_all(list(ENDINGS), QUICK, workers=2), strict=True):
        assert (found.reason, found.error, found.line) == ENDINGS[program], (program, found)
        assert not found.passed


def test_words_of_an_exception_are_kept_and_cut():
    assert run("assert 1 == 2, 'one is not two'", QUICK).message == "one is not two"
    assert len(run("raise ValueError('x' * 10**6)", QUICK).message) == 500
    assert str(run("\nassert 0", QUICK)) == "exception: AssertionError in line 2"


def test_endless_programs_are_ended():
    programs = [
        "import time\ntime.sleep(1000)",
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
        "import signal, time\nfor s in {*range(1, 32)} - {9, 19}: signal.signal(s, signal.SIG_IGN)\ntime.sleep(1000)",
        "while True: print('x' * 1000)",
    ]
    began = time.monotonic()
    found = list(run_all(programs, Limits(wall=1.0, cpu=1, output=100), workers=4))
    assert time.monotonic() - began < 60
    assert [each.reason for each in found] == ["timeout"] * 4, found
    assert found[3].output == "x" * 100


def test_processor_time_is_limited_by_itself():
    found = run("while True: pass", Limits(wall=500, cpu=1))
    assert found.reason == "timeout"
    assert found.seconds < 500


@guarded
def test_forks_are_counted_and_ended_with_the_program(tmp_path):
    program = "import os\nmade = 0\ntry:\n    while True:\n        made += os.fork() > 0\nexcept OSError: print(made)"
    bomb = run(program, QUICK)
    assert bomb.reason in ("passed", "timeout")
    assert max(int(line) for line in bomb.output.split()) <= Limits().processes
    for program in ("", "time.sleep(997)"):
        stray = f"import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(997)\n{program}"
        found = Run(stray, Limits(wall=2 if program else 120), tmp_path, time.monotonic()).finish()
        assert found.reason == ("timeout" if program else "passed")
        until = time.monotonic() + 30  # the kernel takes its time to end what it was told to end
        while alive(tmp_path) and time.monotonic() < until:
            time.sleep(0.05)
        assert not alive(tmp_path)
        (tmp_path / "work").rmdir()


def alive(place: Path) -> bool:
    """Does any process name this folder in its command line?"""
    return any(str(place).encode() in read(path) for path in Path("/proc").glob("[0-9]*/cmdline"))


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@guarded
@pytest.mark.parametrize(
    "program",
    [
        "import socket; socket.socket()",
        "import socket; socket.create_connection(('127.0.0.1', 80))",
        "import urllib.request; urllib.request.urlopen('http://example.org')",
        LISTEN.format("import socket; socket.socket(socket.AF_UNIX)"),  # an interpreter without the audit hook
        LISTEN.format("import socket; socket.socket()"),
        LISTEN.format("import ctypes; exit(ctypes.CDLL(None).unshare(0x10000000))"),
    ],
)
def test_there_is_no_network(program):
    assert run(program, QUICK).reason == "exception"


@guarded
def test_nothing_outside_is_written_or_read(tmp_path):
    target, secret = tmp_path / "target", tmp_path / "secret"
    secret.write_text("for my eyes only")
    tmp_path.chmod(0o777)
    secret.chmod(0o666)
    programs = [
        f"open({str(target)!r}, 'w')",
        f"import os; os.symlink('/etc/hostname', {str(target)!r})",
        f"import os; os.mkdir({str(target)!r})",
        f"import os; os.remove({str(secret)!r})",
        f"open({str(secret)!r}).read()",
        f"open({str(secret)!r}, 'a').write('mine')",
        f"import os; os.listdir({str(tmp_path)!r})",
        "open('/etc/passwd').read()",
        "import os; os.listdir(os.path.expanduser('~root'))",
        "open('/proc/1/environ').read()",
        TOUCH.format(str(target)),
    ]
    for program, found in zip(programs, run_all(programs, QUICK, workers=2), strict=True):
        assert found.reason == "exception", (program, found)
    assert not target.exists()
    assert secret.read_text() == "for my eyes only"


def test_the_working_folder_is_empty_writable_and_gone_afterwards():
    program = (
        "import os\nassert os.listdir() == []\nopen('a', 'w').write('b')\nassert open('a').read() == 'b'\n"
        "print(os.getcwd())"
    )
    first, second = run(program, QUICK), run(program, QUICK)
    assert first.passed
    assert second.passed
    assert first.output != second.output
    assert not Path(first.output.strip()).parent.exists()


@guarded
def test_the_working_folder_has_a_size():
    found = run("for i in range(64): open(f'{i}', 'wb').write(bytes(1 << 20))", Limits(wall=120, folder=4 << 20))
    assert (found.reason, found.error, "No space" in found.message) == ("exception", "OSError", True)


def test_nothing_of_the_caller_is_inherited(monkeypatch):
    monkeypatch.setenv("UNVEIL_SECRET", "s3cret")
    inner = "import os, sys\nprint(sorted(os.environ), sys.argv, sys.stdin.read() == '')\n"
    count = "open_ = 0\nfor i in range(64):\n    try: os.fstat(i); open_ += 1\n    except OSError: pass\nprint(open_)"
    with open(__file__) as held:
        os.set_inheritable(held.fileno(), True)
        found = run(inner + count, QUICK)
    assert found.passed
    assert "SECRET" not in found.output
    said, descriptors = found.output.split("\n")[:2]
    assert said == "['LC_CTYPE', 'PYTHONHASHSEED'] ['program.py'] True"
    assert descriptors == "4"  # the standard three, and the report


def test_sets_of_strings_have_one_order():
    program = "print({'a', 'b', 'c', 'd', 'e'})"
    assert run(program, QUICK).output == run(program, QUICK).output


def test_modules_find_the_program():
    program = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\nimport pickle\n"
        "@dataclass\nclass A:\n    x: int\n"
        "assert pickle.loads(pickle.dumps(A(3))) == A(3)\nassert __name__ == '__main__'"
    )
    assert run(program, QUICK).passed


def test_without_help_from_the_kernel_the_interpreter_refuses(tmp_path):
    refused = [
        f"open({str(tmp_path / 'a')!r}, 'w')",
        f"import os; os.open({str(tmp_path / 'a')!r}, os.O_CREAT)",
        f"import os; os.chdir({str(tmp_path)!r}); open('a', 'w')",
        f"import os; os.mkdir({str(tmp_path / 'a')!r})",
        "import socket; socket.socket()",
        "import socket; socket.getaddrinfo('localhost', 80)",
        "import os; os.fork()",
        "import os; os.system('true')",
        "import subprocess; subprocess.run(['true'])",
        "import os; os.kill(os.getppid(), 9)",
        "import ctypes; ctypes.CDLL(None)",
    ]
    for program in refused:
        found = bare(program)
        assert (found.reason, found.error) == ("exception", "PermissionError"), (program, found)
    assert not list(tmp_path.iterdir())
    assert bare("open('a', 'w').write('b')\nassert open('a').read() == 'b'").passed
    assert bare("x = bytearray(10**11)").reason == "memory"
    assert bare("import sys; sys.exit(0)").reason == "exit"


def test_results_come_in_the_order_of_the_programs():
    programs = [f"import time; time.sleep({0.2 if i == 0 else 0}); print({i})" for i in range(6)]
    assert [each.output.strip() for each in run_all(programs, QUICK, workers=3)] == list("012345")
    assert list(run_all([], QUICK)) == []


@pytest.mark.parametrize("name", ["wall", "cpu", "memory", "processes", "output"])
def test_limits_that_limit_nothing_are_refused(name):
    with pytest.raises(ValueError, match=name):
        Limits(**{name: -1})
    with pytest.raises(ValueError, match="workers"):
        list(run_all(["1"], workers=0))


def test_a_sandbox_that_cannot_be_set_up_is_no_failed_program(monkeypatch):
    monkeypatch.setattr(sandbox, "CONFINE", Path("nowhere.py"))
    with pytest.raises(OSError, match="could not be set up"):
        run("print(1)", QUICK)


def test_the_confined_part_stands_alone():
    """It is run by an interpreter that finds nothing but the standard library."""
    source = Path(sandbox.CONFINE).read_text()
    names = {line.split()[1].split(".")[0] for line in source.split("\n") if line.startswith(("import ", "from "))}
    assert names <= set(sys.stdlib_module_names)
