"""A process of our own, stopped at each call of the system that changes files: to kill it there, or
to have the disk refuse. Linux's ptrace by ctypes, on x86-64 and AArch64; nothing else is needed.

Only the main thread is followed: what changes the store is done there, and a kill ends them all.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import signal
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

_TRACEME, _CONT, _SYSCALL, _SETOPTIONS, _GETREGSET, _SETREGSET = 0, 7, 24, 0x4200, 0x4204, 0x4205
_SYSGOOD, _EXITKILL = 1, 0x100000
_REGISTERS, _ARM_SYSTEM_CALL = 1, 0x404  # NT_PRSTATUS, NT_ARM_SYSTEM_CALL
_CREATES: Final = os.O_CREAT


@dataclass(frozen=True)
class _Machine:
    """Where a processor's registers hold a call.

    Args:
        words: Registers of 8 bytes.
        number: Which holds the call's number, at its entry.
        result: Which holds its result, at its exit.
        arguments: Which hold its arguments.
        calls: Number → (name, argument that is a path or a descriptor, folder's descriptor).
    """

    words: int
    number: int
    result: int
    arguments: tuple[int, ...]
    calls: dict[int, tuple[str, int, int | None]]


_X86: Final = _Machine(
    27, 15, 10, (14, 13, 12, 7, 9, 8),
    {
        1: ("write", 0, None), 18: ("pwrite64", 0, None), 20: ("writev", 0, None),
        40: ("sendfile", 0, None), 74: ("fsync", 0, None), 75: ("fdatasync", 0, None),
        77: ("ftruncate", 0, None), 285: ("fallocate", 0, None),
        82: ("rename", 1, None), 83: ("mkdir", 0, None), 84: ("rmdir", 0, None),
        86: ("link", 1, None), 87: ("unlink", 0, None), 90: ("chmod", 0, None),
        2: ("open", 0, None), 257: ("openat", 1, 0), 258: ("mkdirat", 1, 0),
        263: ("unlinkat", 1, 0), 264: ("renameat", 3, 2), 265: ("linkat", 3, 2),
        268: ("fchmodat", 1, 0), 280: ("utimensat", 1, 0), 316: ("renameat2", 3, 2),
    },
)  # fmt: skip
_ARM: Final = _Machine(
    34, 8, 0, (0, 1, 2, 3, 4, 5),
    {
        64: ("write", 0, None), 68: ("pwrite64", 0, None), 66: ("writev", 0, None),
        71: ("sendfile", 0, None), 82: ("fsync", 0, None), 83: ("fdatasync", 0, None),
        46: ("ftruncate", 0, None), 47: ("fallocate", 0, None),
        56: ("openat", 1, 0), 34: ("mkdirat", 1, 0), 35: ("unlinkat", 1, 0),
        38: ("renameat", 3, 2), 37: ("linkat", 3, 2), 53: ("fchmodat", 1, 0),
        88: ("utimensat", 1, 0), 276: ("renameat2", 3, 2),
    },
)  # fmt: skip
_MACHINES: Final = {"x86_64": _X86, "aarch64": _ARM}
_BY_DESCRIPTOR: Final = {
    "write", "pwrite64", "writev", "sendfile", "fsync", "fdatasync", "ftruncate", "fallocate",
}  # fmt: skip


@dataclass(frozen=True)
class Call:
    """A call that changes a file: its name, and the path that it changes (of a rename: the new)."""

    name: str
    path: str


@dataclass
class Run:
    """What became of a traced process.

    Args:
        calls: In order; the last is the one at which it was killed.
        killed: Whether it was.
        told: What it said of itself: ``{"done": …}``, or ``{"error", "code", "message"}``.
    """

    calls: list[Call] = field(default_factory=list)
    killed: bool = False
    told: dict[str, Any] = field(default_factory=dict)


class TracingRefusedError(RuntimeError):
    """The system does not let a process trace its own child."""


def traced(
    action: Callable[[], Any],
    *folders: Path,
    kill_at: int | None = None,
    refuse: Callable[[int, Call], int] = lambda number, call: 0,
    before: Callable[[int, Call], None] = lambda number, call: None,
) -> Run:
    """Runs an action in a process of its own, and stops at its calls that change files in folders.

    Args:
        action: What to do; what it returns is told as JSON.
        folders: Of which files.
        kill_at: Number of the call, from 0, before which the process is killed.
        refuse: Number and call → ``errno`` with which it fails, undone; 0 where it is done.
        before: Called before each call is done, the process waiting.

    Raises:
        TracingRefusedError: If the system does not allow it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.restype = ctypes.c_long
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _child(libc, action, writer)
    os.close(writer)
    tracer = _Tracer(libc, pid, tuple(f"{folder}" for folder in folders))
    run = tracer.follow(kill_at, refuse, before)
    with os.fdopen(reader, "rb") as file:
        text = file.read()
    run.told = json.loads(text) if text else {}
    if not run.killed and not run.told:
        raise AssertionError("the traced process died and said nothing")
    return run


def _child(libc: ctypes.CDLL, action: Callable[[], Any], writer: int) -> None:
    code = 1
    try:
        if libc.ptrace(_TRACEME, 0, None, None) != 0:
            os._exit(111)
        os.kill(os.getpid(), signal.SIGSTOP)
        told = outcome(action)
        os.write(writer, json.dumps(told).encode())
        code = 0
    finally:
        os._exit(code)


def outcome(action: Callable[[], Any]) -> dict[str, Any]:
    """What an action returned, or the error that it raised, JSON-ready."""
    try:
        return {"done": action()}
    except Exception as error:
        return {
            "error": type(error).__name__,
            "code": getattr(error, "exit_code", None),
            "message": str(error),
        }


@dataclass
class _Tracer:
    libc: ctypes.CDLL
    pid: int
    folders: tuple[str, ...]

    def follow(
        self,
        kill_at: int | None,
        refuse: Callable[[int, Call], int],
        before: Callable[[int, Call], None],
    ) -> Run:
        machine = _MACHINES[platform.machine()]
        _, status = os.waitpid(self.pid, 0)
        if os.WIFEXITED(status):
            raise TracingRefusedError(
                "this system does not let a process trace its own child (ptrace); "
                "in a container: --cap-add SYS_PTRACE, or a seccomp profile that allows it"
            )
        self._ask(_SETOPTIONS, None, _SYSGOOD | _EXITKILL)
        run, inside, fail = Run(), False, 0
        deliver = 0
        while True:
            self._ask(_SYSCALL, None, deliver)
            deliver = 0
            _, status = os.waitpid(self.pid, 0)
            if os.WIFEXITED(status) or os.WIFSIGNALED(status):
                return run
            if os.WSTOPSIG(status) != signal.SIGTRAP | 0x80:
                deliver = os.WSTOPSIG(status)
                continue
            inside = not inside
            if inside:
                call = self._call(machine)
                if call is None:
                    continue
                number = len(run.calls)
                run.calls.append(call)
                if number == kill_at:
                    os.kill(self.pid, signal.SIGKILL)
                    os.waitpid(self.pid, 0)
                    run.killed = True
                    return run
                before(number, call)
                fail = refuse(number, call)
                if fail:
                    self._skip(machine)
            elif fail:
                registers = self._registers(machine)
                registers[machine.result] = (-fail) & (2**64 - 1)
                self._set(_REGISTERS, struct.pack(f"{machine.words}Q", *registers))
                fail = 0

    def _call(self, machine: _Machine) -> Call | None:
        """The call that is about to be done, if it changes a file in the folders."""
        registers = self._registers(machine)
        known = machine.calls.get(registers[machine.number])
        if known is None:
            return None
        name, position, folder = known
        values = [registers[own] for own in machine.arguments]
        if name in ("open", "openat") and not values[position + 1] & _CREATES:
            return None
        if name in _BY_DESCRIPTOR:
            path = self._descriptor(values[position])
        else:
            path = self._text(values[position])
            if folder is not None and not path.startswith("/"):
                path = f"{self._descriptor(values[folder])}/{path}"
        path = path.removesuffix(" (deleted)")
        inside = any(path == own or path.startswith(f"{own}/") for own in self.folders)
        return Call(name, path) if inside else None

    def _descriptor(self, value: int) -> str:
        number = value & 0xFFFFFFFF
        try:
            if number > 2**31:  # AT_FDCWD
                return os.readlink(f"/proc/{self.pid}/cwd")
            return os.readlink(f"/proc/{self.pid}/fd/{number}")
        except OSError:
            return ""

    def _text(self, address: int) -> str:
        found = b""
        with open(f"/proc/{self.pid}/mem", "rb", buffering=0) as memory:
            while b"\0" not in found and len(found) < 8192:
                memory.seek(address + len(found))
                found += memory.read(256 - (address + len(found)) % 256)
        return os.fsdecode(found.split(b"\0")[0])

    def _registers(self, machine: _Machine) -> list[int]:
        data = ctypes.create_string_buffer(8 * machine.words)
        self._regset(_GETREGSET, _REGISTERS, data)
        return list(struct.unpack(f"{machine.words}Q", data.raw))

    def _skip(self, machine: _Machine) -> None:
        """The call is not done: its number becomes one that there is not."""
        if machine is _ARM:
            self._set(_ARM_SYSTEM_CALL, struct.pack("i", -1))
            return
        registers = self._registers(machine)
        registers[machine.number] = 2**64 - 1
        self._set(_REGISTERS, struct.pack(f"{machine.words}Q", *registers))

    def _set(self, kind: int, values: bytes) -> None:
        self._regset(_SETREGSET, kind, ctypes.create_string_buffer(values, len(values)))

    def _regset(self, request: int, kind: int, data: ctypes.Array[ctypes.c_char]) -> None:
        pair = (ctypes.c_void_p * 2)(ctypes.addressof(data), len(data))
        self._ask(request, kind, ctypes.addressof(pair))

    def _ask(self, request: int, address: int | None, data: int | None) -> None:
        if self.libc.ptrace(request, self.pid, address, data) < 0:
            number = ctypes.get_errno()
            raise TracingRefusedError(f"ptrace({request}): {os.strerror(number)}")
