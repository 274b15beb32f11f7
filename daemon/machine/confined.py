"""What a process that works on strangers' bytes may reach: the files that it is given, and nobody.

Landlock(7) holds it to paths, from the first version of its interface on (Linux 5.13, as Debian and Ubuntu have it
switched on). What later versions would hold it to, and what Landlock leaves alone, seccomp(2) takes away: sockets,
signals, other processes, what changes a file without opening it to write. Both act on this process and its children for
good. Standard library only: it runs in any interpreter.
"""

import ctypes
import errno
import os
import stat
import struct
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

PR_SET_NO_NEW_PRIVS = 38

# --- Landlock: linux/landlock.h. Rights to paths, of version 1 to 5 of its interface

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
MAKE_CHAR, MAKE_SOCK, MAKE_BLOCK = 1 << 6, 1 << 9, 1 << 11
_VERSION_1 = (1 << 13) - 1
REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
READ = EXECUTE | READ_FILE | READ_DIR
# a program that it writes, a device or a socket would be a way out of where it writes
NEVER = EXECUTE | MAKE_CHAR | MAKE_SOCK | MAKE_BLOCK
_OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV

# what programs and libraries are made of, and what they ask the kernel for: nothing of other processes
PROC = ("/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/sys/vm")
SYSTEM = (
    "/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/etc/localtime", "/etc/passwd", "/etc/nsswitch.conf",
    *PROC, "/sys/devices/system", "/dev/urandom",
)  # fmt: skip
SINKS = ("/dev/null",)
ROOMS = tuple(str(Path(__file__).resolve().parents[2] / room) for room in ("daemon", "quantize", "api"))

# --- seccomp: what is refused on x86_64, by the numbers of arch/x86/entry/syscalls/syscall_64.tbl

SECCOMP, SET_MODE_FILTER, ALL_THREADS, SPEC_ALLOW = 317, 1, 1, 4
AUDIT_ARCH_X86_64 = 0xC000003E
X32_BIT = 0x40000000
KILL, TGKILL, SOCKET, SOCKETPAIR, OPEN, OPENAT = 62, 234, 41, 53, 2, 257
FCNTL, IOCTL, PRLIMIT, OPENAT2 = 72, 16, 302, 437
SIGNALS = {"tkill": 200, "rt_sigqueueinfo": 129, "rt_tgsigqueueinfo": 297, "pidfd_send_signal": 424}
OTHERS = {
    "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "pidfd_getfd": 438, "process_madvise": 440,
    "process_mrelease": 448, "kcmp": 312, "setpriority": 141, "ioprio_set": 251, "migrate_pages": 256,
}  # fmt: skip
# of files that it cannot write: their attributes, and (which Landlock knows since its version 3) their length
ATTRIBUTES = {
    "truncate": 76, "chmod": 90, "fchmod": 91, "fchmodat": 268, "fchmodat2": 452, "chown": 92, "fchown": 93,
    "lchown": 94, "fchownat": 260, "utime": 132, "utimes": 235, "futimesat": 261, "utimensat": 280, "setxattr": 188,
    "lsetxattr": 189, "fsetxattr": 190, "setxattrat": 463, "removexattr": 197, "lremovexattr": 198,
    "fremovexattr": 199, "removexattrat": 466, "file_setattr": 469, "inotify_add_watch": 254, "fanotify_init": 300,
    "open_by_handle_at": 304,
}  # fmt: skip
# of the kernel's, which nothing here needs and much that was wrong with it was found in; a ring makes any call
KERNEL = {
    "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "bpf": 321, "perf_event_open": 298,
    "userfaultfd": 323, "keyctl": 250, "add_key": 248, "request_key": 249, "unshare": 272, "setns": 308,
}  # fmt: skip
# what only root can do, and llmd may run as root
ROOTS = {
    "mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161, "open_tree": 428, "move_mount": 429, "fsopen": 430,
    "fsconfig": 431, "fsmount": 432, "fspick": 433, "mount_setattr": 442, "kexec_load": 246, "kexec_file_load": 320,
    "init_module": 175, "finit_module": 313, "delete_module": 176, "reboot": 169, "swapon": 167, "swapoff": 168,
    "iopl": 172, "ioperm": 173, "acct": 163, "syslog": 103, "settimeofday": 164, "clock_settime": 227, "adjtimex": 159,
    "clock_adjtime": 305, "sethostname": 170, "setdomainname": 171, "quotactl": 179, "quotactl_fd": 443,
}  # fmt: skip
# with pid 0 or its own: the limits and the scheduling of others
OF_PROCESSES = {"prlimit64": PRLIMIT, "sched_setscheduler": 144, "sched_setparam": 142, "sched_setattr": 314}
# whom a descriptor sends signals to, and which: fcntl's F_SETOWN, F_SETSIG, F_SETOWN_EX; ioctl's FIOSETOWN, SIOCSPGRP,
# and TIOCSTI, which types on a terminal
OWNERS, OWNER_IOCTLS = (8, 10, 15), (0x8901, 0x8902, 0x5412)
O_ACCMODE = 3

AF_UNIX, AF_INET, AF_INET6, AF_NETLINK = 1, 2, 10, 16
SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET, SOCK_TYPES = 1, 2, 5, 0xF
# families of sockets, and the types of each: none, and what NCCL makes. A datagram socket connects to no stream's
NO_SOCKETS: Mapping[int, Sequence[int]] = {}
NCCL: Mapping[int, Sequence[int]] = {AF_INET: (), AF_INET6: (), AF_NETLINK: (), AF_UNIX: (SOCK_DGRAM,)}

# what an admin does where the kernel lacks any of this
REPAIR = "boot one that is 5.13 or newer, with Landlock switched on (lsm=landlock,…), outside of what forbids it"

_libc = ctypes.CDLL(None, use_errno=True)


def confine(reads: Iterable[str], writes: Iterable[str] = (), *, links: bool = True) -> None:
    """Hold this process to reading `reads`, the system's own files and what this interpreter runs, to writing `writes`,
    to signals to itself and to no sockets. Without `links`, a link that was put into the place of one of `reads`, or of
    a folder above, since its path was resolved leads nowhere. Raises OSError. Where the kernel lacks something
    (`lacks`), the rest holds."""
    hold_to_paths(reads, writes, links=links)
    refuse_calls()


def hold_to_paths(reads: Iterable[str], writes: Iterable[str] = (), *, links: bool = True) -> None:
    """The first half of `confine`, of this thread and those that it starts: there must be no other. Raises OSError."""
    _alone()
    _libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _hold_paths([*SYSTEM, *_own(), *(reads if links else ())], [*SINKS, *writes], () if links else reads)


def refuse_calls(sockets: Mapping[int, Sequence[int]] = NO_SOCKETS) -> None:
    """The second half, of all threads that there are: what they have opened by now stays so. `sockets` are those that
    may still be made. Raises OSError."""
    _libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    pairs = [[_is(0, AF_UNIX), _is(1, SOCK_STREAM, SOCK_SEQPACKET, mask=SOCK_TYPES)]]
    _filter([os.getpid()], sockets, pairs)


def seal() -> None:
    """From now on this process opens no file and no socket and signals nobody; what is open stays so. It has one
    thread. Raises OSError."""
    _alone()
    _libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _hold_paths((), ())
    _filter([], NO_SOCKETS, [])


def lacks() -> list[str]:
    """What the kernel, or what this process runs in, does not have of all this; none: it holds processes to it."""
    return [name for name, there in (("Landlock", landlock() > 0), ("seccomp", _filters())) if not there]


def readable(path: Path) -> str:
    """Below what whoever is confined may read it, as a part of the system or of its own; "": it may not."""
    held = path.resolve()
    return next((root for root in (*SYSTEM, *_own()) if held.is_relative_to(Path(root).resolve())), "")


def landlock() -> int:
    """The version of the kernel's interface; 0 where it has none."""
    return max(0, int(_libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), 1)))


def _alone() -> None:
    if len(threads := os.listdir("/proc/self/task")) > 1:
        raise RuntimeError(f"{len(threads)} threads run: what confines one of them leaves the others free")


def _own() -> list[str]:
    """What this interpreter runs, and the libraries that its environment names."""
    named = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    own = [sys.prefix, sys.base_prefix, *sys.path, *named, *ROOMS]
    return [path for path in own if os.path.isabs(path)]


# --- paths


def _hold_paths(reads: Iterable[str], writes: Iterable[str], resolved: Iterable[str] = ()) -> None:
    version = landlock()
    if version <= 0:
        return
    handled = _VERSION_1 | (REFER if version >= 2 else 0) | (TRUNCATE if version >= 3 else 0)
    handled |= IOCTL_DEV if version >= 5 else 0
    attributes = struct.pack("=Q", handled)
    ruleset = _checked(_libc.syscall(CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0))
    for paths, rights, follow in ((reads, READ, _follow), (writes, handled & ~NEVER, _follow), (resolved, READ, _walk)):
        for path in paths:
            _allow(ruleset, path, rights & handled, follow)
    _checked(_libc.syscall(RESTRICT_SELF, ruleset, 0))
    os.close(ruleset)


def _follow(path: str) -> int:
    return os.open(path, os.O_PATH | os.O_CLOEXEC)


def _walk(path: str) -> int:
    """As `_follow`, and raises OSError where a part of the path is a link."""
    at = os.open("/", os.O_PATH | os.O_CLOEXEC)
    for part in Path(path).parts[1:]:
        above = at
        try:
            at = os.open(part, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
        finally:
            os.close(above)
        if stat.S_ISLNK(os.fstat(at).st_mode):
            os.close(at)
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
    return at


def _allow(ruleset: int, path: str, rights: int, find: Callable[[str], int]) -> None:
    try:
        fd = find(path)
    except OSError:
        return  # what it cannot find it cannot read
    if not os.path.isdir(f"/proc/self/fd/{fd}"):
        rights &= _OF_FILES
    beneath = struct.pack("=Qi", rights, fd)
    _checked(_libc.syscall(ADD_RULE, ruleset, 1, beneath, 0))
    if not path.startswith("/proc/"):  # there a file is another one when memory was short and nobody held it
        os.close(fd)


# --- system calls: a program of classic BPF, linux/filter.h. What it does not name is allowed

_LOAD, _AND, _EQUAL, _AT_LEAST, _SKIP, _GIVE = 0x20, 0x54, 0x15, 0x35, 0x05, 0x06
_ALLOWED, _KILLED, _ERROR = 0x7FFF0000, 0x80000000, 0x00050000
_REFUSED = (_GIVE, 0, 0, _ERROR | errno.EACCES)

Step = tuple[int, int, int, int]  # code, steps to skip where it holds and where not, value
Test = tuple[int, int, Sequence[int]]  # which argument (its lower half), a mask, the values that it may have


def _is(argument: int, *values: int, mask: int = 0xFFFFFFFF) -> Test:
    return argument, mask, values


def _filter(signalled: Sequence[int], sockets: Mapping[int, Sequence[int]], pairs: Sequence[Sequence[Test]]) -> None:
    """`signalled`: the processes that it may send signals to; `pairs`: of socketpair(2)."""
    if not _filters():
        return
    own = [[_is(0, *signalled)]] if signalled else []
    made = [
        [_is(0, family), *([_is(1, *types, mask=SOCK_TYPES)] if types else [])] for family, types in sockets.items()
    ]
    rules = {KILL: own, TGKILL: own, SOCKET: made, SOCKETPAIR: pairs}
    rules |= dict.fromkeys(OF_PROCESSES.values(), [[_is(0, 0, os.getpid())]])
    # opened to read, a file is not cut off by the way, and nothing is opened for neither reading nor writing
    opened = [os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC, os.O_RDWR | os.O_TRUNC]
    rules |= {call: [[_is(at, *opened, mask=O_ACCMODE | os.O_TRUNC)]] for call, at in ((OPEN, 1), (OPENAT, 2))}
    never = [number for numbers in (SIGNALS, OTHERS, ATTRIBUTES, KERNEL, ROOTS) for number in numbers.values()]
    steps: list[Step] = [
        (_LOAD, 0, 0, 4), (_EQUAL, 1, 0, AUDIT_ARCH_X86_64), (_GIVE, 0, 0, _KILLED),
        (_LOAD, 0, 0, 0), (_AT_LEAST, len(never) + 1, 0, X32_BIT),
        *((_EQUAL, len(never) - at, 0, number) for at, number in enumerate(never)), (_SKIP, 0, 0, 1), _REFUSED,
        # its flags lie where no filter can read them; whoever tries it takes the older one then
        (_EQUAL, 0, 1, OPENAT2), (_GIVE, 0, 0, _ERROR | errno.ENOSYS),
    ]  # fmt: skip
    for number, ways in rules.items():
        steps += _only(number, ways)
    steps += [*_none_of(FCNTL, OWNERS), *_none_of(IOCTL, OWNER_IOCTLS), (_GIVE, 0, 0, _ALLOWED)]
    _install(steps)


def _only(number: int, ways: Sequence[Sequence[Test]]) -> list[Step]:
    """A call whose arguments pass all tests of one of these ways is allowed, any other refused."""
    body: list[Step] = []
    for tests in ways:
        way: list[Step] = [(_GIVE, 0, 0, _ALLOWED)]
        for argument, mask, values in reversed(tests):
            last = len(values) - 1
            equal = [(_EQUAL, last - at + 1, 0, value) for at, value in enumerate(values)]
            way = [(_LOAD, 0, 0, 16 + 8 * argument), (_AND, 0, 0, mask), *equal, (_SKIP, 0, 0, len(way)), *way]
        body += way
    return [(_EQUAL, 0, len(body) + 1, number), *body, _REFUSED]


def _none_of(number: int, values: Sequence[int]) -> list[Step]:
    """A call whose second argument is one of these values is refused, any other allowed."""
    equal = [(_EQUAL, len(values) - at, 0, value) for at, value in enumerate(values)]
    body = [(_LOAD, 0, 0, 24), *equal, (_GIVE, 0, 0, _ALLOWED), _REFUSED]
    return [(_EQUAL, 0, len(body), number), *body]


def _install(steps: Sequence[Step]) -> None:
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    program = struct.pack("@HxxxxxxP", len(steps), ctypes.addressof(code))
    # without SPEC_ALLOW some kernels have such a process guess less, which costs it speed; others do not know it
    result = _libc.syscall(SECCOMP, SET_MODE_FILTER, ALL_THREADS | SPEC_ALLOW, program)
    if result < 0 and ctypes.get_errno() == errno.EINVAL:
        result = _libc.syscall(SECCOMP, SET_MODE_FILTER, ALL_THREADS, program)
    if _checked(result) > 0:
        raise OSError(errno.EBUSY, "a thread has other filters")


def _filters() -> bool:
    """Whether there are filters, and system calls have these numbers."""
    if os.uname().machine != "x86_64":
        return False
    # of no filter at all, a kernel that knows them says that it cannot be read
    return _libc.syscall(SECCOMP, SET_MODE_FILTER, 0, None) < 0 and ctypes.get_errno() == errno.EFAULT


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(result)
