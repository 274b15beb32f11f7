"""What a child that works on a stranger's files may reach: the folders that it is given, and no network.

Landlock(7) holds it to paths (Linux 5.13, as Debian has it switched on), seccomp(2) takes sockets away. Both act on
this process and its children for good. Standard library only: it runs in any interpreter.
"""

import ctypes
import errno
import os
import struct
from collections.abc import Iterable

PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 22, 2
PR_SET_NO_NEW_PRIVS = 38
# on x86_64, landlock_create_ruleset(2) and its kin; socket(2), io_uring_setup(2)
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
SOCKET, IO_URING_SETUP = 41, 425
AUDIT_ARCH_X86_64 = 0xC000003E
X32_BIT = 0x40000000

# linux/landlock.h: rights to paths, of version 1 to 5 of its interface
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
_VERSION_1 = (1 << 13) - 1
REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
READ = EXECUTE | READ_FILE | READ_DIR
_OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV

# what programs and libraries are made of, and what they ask the kernel for
SYSTEM = (
    "/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/etc/localtime", "/etc/passwd", "/etc/nsswitch.conf",
    "/proc", "/sys/devices/system", "/sys/fs/cgroup", "/dev/urandom",
)  # fmt: skip
SINKS = ("/dev/null",)

_libc = ctypes.CDLL(None, use_errno=True)


def confine(reads: Iterable[str], writes: Iterable[str]) -> None:
    """Hold this process to reading `reads` and the system's own files, writing into `writes`, and no sockets. Raises
    OSError. Where the kernel has no Landlock, paths stay what their owners allow."""
    _libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _hold_paths([*SYSTEM, *reads], [*SINKS, *writes])
    _take_sockets()


def seal() -> None:
    """From now on this process opens no file and no socket; what is open stays so. Raises OSError."""
    _libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _hold_paths((), ())
    _take_sockets()


def landlocked() -> bool:
    """Whether the kernel holds processes to paths."""
    return _version() > 0


def _version() -> int:
    return int(_libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), 1))


def _hold_paths(reads: Iterable[str], writes: Iterable[str]) -> None:
    version = _version()
    if version <= 0:
        return
    handled = _VERSION_1 | (REFER if version >= 2 else 0) | (TRUNCATE if version >= 3 else 0)
    handled |= IOCTL_DEV if version >= 5 else 0
    attributes = struct.pack("=Q", handled)
    ruleset = _checked(_libc.syscall(CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0))
    for paths, rights in ((reads, READ), (writes, handled)):
        for path in paths:
            _allow(ruleset, path, rights & handled)
    _checked(_libc.syscall(RESTRICT_SELF, ruleset, 0))
    os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    if not os.path.isdir(f"/proc/self/fd/{fd}"):
        rights &= _OF_FILES
    beneath = struct.pack("=Qi", rights, fd)
    _checked(_libc.syscall(ADD_RULE, ruleset, 1, beneath, 0))
    os.close(fd)


def _take_sockets() -> None:
    """A filter of classic BPF, linux/filter.h: what it does not name is allowed."""
    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06
    refused, allowed, killed = 0x00050000 | errno.EACCES, 0x7FFF0000, 0x80000000
    steps = [
        (load, 0, 0, 4), (equal, 1, 0, AUDIT_ARCH_X86_64), (give, 0, 0, killed),
        (load, 0, 0, 0), (at_least, 2, 0, X32_BIT), (equal, 1, 0, SOCKET), (equal, 0, 1, IO_URING_SETUP),
        (give, 0, 0, refused), (give, 0, 0, allowed),
    ]  # fmt: skip
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    program = struct.pack("@HxxxxxxP", len(steps), ctypes.addressof(code))
    _checked(_libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0))


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(result)
