# A clean Debian 12 for the tests of the package, made once and kept in ~/.cache/llmd/debian. Sourced; $NAME says whose
# lines they are.
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/llmd
BASE=$CACHE/debian/bookworm-3.tar
PACKAGES=systemd,systemd-sysv,dbus,python3,procps,iproute2,libgomp1,libstdc++6,ca-certificates,debconf

BEGIN=$SECONDS
say() { printf '%s: %3d s  %s\n' "$NAME" $((SECONDS - BEGIN)) "$*"; }
fail() { say "FAILED: $*" && exit 1; }

# tools PACKAGE...: these are installed here
tools() {
    local missing=() package
    for package; do
        dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
    done
    if ((${#missing[@]})); then
        say "installing ${missing[*]}"
        { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >/dev/null
    fi
}

base() {
    [[ -f $BASE ]] && return
    say "making a clean Debian 12, once"
    mkdir -p "${BASE%/*}"
    mmdebstrap --quiet --format=tar --variant=minbase --include="$PACKAGES" bookworm "$BASE.part"
    mv "$BASE.part" "$BASE"
}

# inside ROOT SCRIPT: a script in that root, without systemd, with processes, mounts and a network of its own
inside() {
    unshare --mount --pid --net --uts --ipc --fork --kill-child --propagation private bash -c '
        set -e
        mount --bind "$1" "$1"
        mount -t proc proc "$1/proc"
        mount -t tmpfs tmpfs "$1/dev/shm" 2>/dev/null || true
        ip link set lo up 2>/dev/null || true
        exec chroot "$1" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/srv LANG=C.UTF-8 TERM=dumb DEBIAN_FRONTEND=noninteractive \
            bash "$2"
    ' inside "$1" "$2"
}
