"""Run one program text under limits, in a process that `unveil.sandbox` started for it.

This file is run as a script by a bare interpreter and imports nothing of the library. It gives up what it may do step
by step, from the outside in, and then executes the program:

1. on Linux, where the kernel allows it: another user where the caller is root; namespaces of its own for users, the
   network, processes, System V memory and mounts, with a small tmpfs as working folder; Landlock, which leaves reading
   the interpreter and writing the working folder; a system call filter without sockets, tracing and new namespaces;
2. resource limits;
3. an audit hook in the interpreter, which cannot be taken out again. It stands in for what the kernel did not allow.

What was in force is reported before the program begins.
"""

from __future__ import annotations

import builtins
import ctypes
import json
import os
import resource
import struct
import sys
import types
from collections.abc import Callable, Iterable
from typing import Any

NOBODY, STRANGERS = 65534, 1 << 30  # a user id, and from where on nobody uses any
USER, GROUP = os.getuid(), os.getgid()
NEWNS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x00020000, 0x08000000, 0x10000000, 0x20000000, 0x40000000
READABLE = 0xD  # Landlock's rights to execute, to read files and to read folders
FS_RIGHTS = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 4: 0x7FFF}  # by version; from 5 on all 16
SEEN = ("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/etc/localtime")  # read-only, beside the interpreter
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")
DENIED = {  # system calls by machine: its audit number, then their numbers
    "x86_64": (0xC000003E, (41, 101, 165, 250, 272, 298, 308, 310, 311, 321, 323, 425)),
    "aarch64": (0xC00000B7, (198, 117, 40, 219, 97, 241, 268, 270, 271, 280, 282, 425)),
}  # socket, ptrace, mount, keyctl, unshare, perf_event_open, setns, process_vm_*, bpf, userfaultfd, io_uring_setup
SPAWNING = ("os.fork", "os.forkpty", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "subprocess.Popen")
CALLING = ("socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo")
CHANGING = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod")


class Kernel:
    """System calls that Python has no names for."""

    def __init__(self):
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.libc.syscall.restype = ctypes.c_long

    def done(self, found: int) -> bool:
        return found >= 0

    def unshare(self, flags: int) -> bool:
        return self.done(self.libc.unshare(flags))

    def mount(self, what: str, where: str, options: str) -> bool:
        flags = 2 | 4  # nosuid, nodev
        return self.done(self.libc.mount(what.encode(), where.encode(), what.encode(), flags, options.encode()))

    def bind(self, what: str, where: str) -> bool:
        return self.done(self.libc.mount(what.encode(), where.encode(), None, 0x1000, None))

    def private(self) -> bool:
        """What is mounted from here on stays within this namespace."""
        return self.done(self.libc.mount(b"none", b"/", None, 0x4000 | 0x40000, None))

    def no_rights(self) -> bool:
        """No capabilities, in whatever namespace, and none to be gained by running anything."""
        nothing, header = bytes(24), struct.pack("=Ii", 0x20080522, 0)
        dropped = self.done(self.libc.capset(header, nothing))
        return self.done(self.libc.prctl(38, *map(ctypes.c_ulong, (1, 0, 0, 0)))) and dropped

    def landlock(self, readable: Iterable[str]) -> int:
        """Leave writing in this folder, and reading here and in `readable`; Landlock's version, 0 for none."""
        version = self.libc.syscall(444, None, ctypes.c_size_t(0), 1)
        if version < 1:
            return 0
        rights = FS_RIGHTS.get(version, 0xFFFF)
        # Connecting and binding TCP (version 4), abstract sockets and signals to the outside (version 6): none.
        handled = struct.pack("QQQ", rights, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
        size = 24 if version >= 6 else 16 if version >= 4 else 8
        ruleset = self.libc.syscall(444, handled, ctypes.c_size_t(size), 0)
        if ruleset < 0:
            return 0
        allowed = [(".", rights), *((path, READABLE) for path in readable), *((path, 0x6) for path in DEVICES)]
        for path, these in allowed:
            if os.path.exists(path):
                place = os.open(path, os.O_PATH | os.O_CLOEXEC)
                these &= rights if os.path.isdir(path) else 0x4007  # a file can be run, written, read and truncated
                self.libc.syscall(445, ruleset, 1, struct.pack("=Qi", these & rights, place), 0)
                os.close(place)
        kept = self.done(self.libc.syscall(446, ruleset, 0))
        os.close(ruleset)
        return int(version) if kept else 0

    def filter(self) -> bool:
        """Refuse the system calls in DENIED with "not permitted"; seccomp, as the kernel's networking/filter.rst."""
        machine = os.uname().machine
        if machine not in DENIED:
            return False
        audit, numbers = DENIED[machine]
        end = 6 + len(numbers)
        code = [(0x20, 0, 0, 4), (0x15, 1, 0, audit), (0x06, 0, 0, 0x80000000), (0x20, 0, 0, 0)]
        code.append((0x35, end - len(code) - 1, 0, 0x40000000))  # the x32 numbers of x86_64
        for number in numbers:
            code.append((0x15, end - len(code) - 1, 0, number))
        code += [(0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x00050001)]
        packed = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in code))
        program = struct.pack("HxxxxxxQ", len(code), ctypes.addressof(packed))
        return self.done(self.libc.prctl(22, ctypes.c_ulong(2), program, ctypes.c_ulong(0), ctypes.c_ulong(0)))


def apart(kernel: Kernel, folder: str, size: int) -> dict[str, bool]:
    """Namespaces of its own and a tmpfs of `size` bytes over `folder`; what of it the kernel allowed."""
    root, kinds = os.geteuid() == 0, NEWNET | NEWPID | NEWIPC | NEWNS
    alone = kernel.unshare(kinds) if root else kernel.unshare(NEWUSER | kinds)
    if alone and not root:
        for name, line in (("uid_map", f"{USER} {USER} 1"), ("setgroups", "deny"), ("gid_map", f"{GROUP} {GROUP} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(line)
    private = alone and kernel.private() and kernel.mount("tmpfs", folder, f"size={size},mode=777")
    os.chdir(folder)  # while there is a right to pass the folders above it
    nobody = root and become_nobody(kernel, alone)
    return {"network": alone, "processes": alone, "counted": nobody or (alone and not root), "folder": private}


def become_nobody(kernel: Kernel, private: bool) -> bool:
    """From root to a user whom nobody else is, so that its processes can be counted; False where that fails.

    An interpreter in a closed folder, such as root's home, would be out of reach then: with a mount namespace of its
    own, that folder is replaced by an empty one that leads to the interpreter and to nothing else.
    """
    prefix = os.path.realpath(sys.base_prefix)
    parts = prefix.split("/")
    above = ["/".join(parts[:i]) for i in range(2, len(parts) + 1)]
    closed = next((path for path in above if not os.stat(path).st_mode & 1), None)
    if closed == prefix or (closed and not private):
        return False
    if closed:
        place = os.open(prefix, os.O_PATH)
        if not kernel.mount("tmpfs", closed, "size=64k,mode=755"):
            return False
        os.makedirs(prefix)
        if not kernel.bind(f"/proc/self/fd/{place}", prefix):
            return False
        os.close(place)
    for user in (STRANGERS + os.getpid(), NOBODY):  # where ids are mapped there may be no such number
        try:
            os.chown(".", user, user)
            os.setgroups([])
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
        except OSError:
            continue
        return user != NOBODY  # others may be nobody at the same time
    return False


def supervise() -> None:
    """In a new process namespace: go on in a child of its first process, with whose end the kernel ends all others."""
    inner = os.fork()
    if inner:
        os._exit(waited(inner))
    inner = os.fork()
    if inner:
        os._exit(waited(inner))


def waited(child: int) -> int:
    """The exit status of a child, 128 and its number for a signal; others are reaped on the way."""
    while True:
        found, status = os.wait()
        if found == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def limit(wanted: dict[str, Any], counted: bool) -> None:
    """Resource limits, hard ones."""
    processes = wanted["processes"] + 3 if counted else None  # this one and the two that wait for it
    for kind, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, wanted["cpu"]),
        (resource.RLIMIT_AS, wanted["memory"]),
        (resource.RLIMIT_DATA, wanted["memory"]),
        (resource.RLIMIT_FSIZE, wanted["file"]),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_NPROC, processes),
    ):
        if value is not None:
            most = resource.getrlimit(kind)[1]
            value = value if most == resource.RLIM_INFINITY else min(value, most)
            resource.setrlimit(kind, (value, value))


def watch(folder: str, guards: dict[str, Any]) -> Callable[[str, tuple], None]:
    """An audit hook that refuses what a program has no business with."""
    root = os.path.realpath(folder)
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    inside: Callable[[object], bool] = lambda path: (
        not isinstance(path, str | bytes) or os.path.realpath(os.fsdecode(path)).startswith(root)
    )

    def hook(event: str, given: tuple) -> None:
        if event.startswith("ctypes.") or event in CALLING or (event == "socket.__new__" and given[1] not in (-1, 1)):
            raise PermissionError(f"{event} is not allowed in the sandbox")
        if not guards["processes"] and (event in SPAWNING or event in ("os.kill", "os.killpg")):
            raise PermissionError(f"{event} is not allowed in the sandbox")
        if guards["landlock"] or event not in ("open", *CHANGING):
            return
        paths = given[:1] if event == "open" else given
        changes = event != "open" or (isinstance(given[2], int) and given[2] & writing)
        if changes and not all(map(inside, paths)):
            raise PermissionError(f"{event} outside of the working folder is not allowed in the sandbox")

    return hook


def execute(source: str, report: int) -> None:
    """The program as `__main__`, and how it ended. The proof of having reached the end is not read before the end."""
    write, read, leave, flush = os.write, os.read, os._exit, (sys.stdout.flush, sys.stderr.flush)
    whoami, me = os.getpid, os.getpid()  # what the program forks may come here as well
    module = types.ModuleType("__main__")
    vars(module)["__builtins__"] = builtins
    sys.modules["__main__"] = module
    sys.argv = ["program.py"]
    try:
        exec(compile(source, "program.py", "exec", dont_inherit=True), vars(module))
        for each in flush:
            each()
    except BaseException as error:
        said = {"error": type(error).__name__, "message": told(error), "line": where(error)}
        if whoami() == me:
            write(report, json.dumps(said).encode() + b"\n")
        leave(1)
    if whoami() == me:
        write(report, json.dumps({"end": read(report, 64).decode()}).encode() + b"\n")
    leave(0)


def told(error: BaseException) -> str:
    """What an exception says; its own words may be the program's, and fail."""
    try:
        return str(error)[:500]
    except BaseException as second:
        return f"(no message: {type(second).__name__})"


def where(error: BaseException) -> int | None:
    """The line of the program that an exception came from."""
    line = error.lineno if isinstance(error, SyntaxError) else None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "program.py":
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def main() -> None:
    """Confine this process as the caller's JSON says, and run the program that lies beside the working folder."""
    wanted = json.loads(sys.argv[1])
    folder, report = wanted["folder"], wanted["report"]
    with open(wanted["program"], encoding="utf-8", errors="surrogatepass") as file:
        source = file.read()
    guards: dict[str, Any] = {"network": False, "processes": False, "counted": False, "folder": False}
    readable = sorted({os.path.realpath(sys.base_prefix), os.path.dirname(os.path.realpath(os.__file__)), *SEEN})
    kernel = Kernel() if sys.platform == "linux" and wanted["kernel"] else None
    if kernel is not None:
        guards = apart(kernel, folder, wanted["folder_size"])
        if guards["processes"]:
            supervise()
        rights = kernel.no_rights()
        guards |= {"landlock": kernel.landlock(readable) if rights else 0}
        guards |= {"filter": rights and kernel.filter()}
    else:
        guards |= {"landlock": 0, "filter": False}
    os.write(report, json.dumps(guards).encode() + b"\n")
    limit(wanted, guards["counted"])
    sys.addaudithook(watch(folder, guards))
    execute(source, report)


if __name__ == "__main__":
    main()
