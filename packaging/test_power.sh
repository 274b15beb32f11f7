#!/usr/bin/env bash
# The installed package in a machine of its own (qemu, without KVM), whose power fails under load: what was acknowledged
# by then is there at the next start, and the audit log's chain holds. Its kernel is Debian's own, and can limit memory, which
# a container's cannot: so what confines processes, and workers' limits, are tried here too. Root.
#
#   packaging/test_power.sh [TIMES]      default: 2; PACKAGE=FILE.deb: that one instead of one that is built
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

NAME=test-power
source packaging/debian_root.sh # CACHE, BASE, say, fail, tools, base, inside
BASE=$CACHE/debian/bookworm-machine-1.tar
PACKAGES+=,udev,kmod,linux-image-cloud-amd64,initramfs-tools,zstd
TIMES=${1:-2}
# lines that a machine tells before its power fails, and some more seconds
ENOUGH=40
MORE_SECONDS=6
BOOT_SECONDS=400

WORK=$(mktemp -d)
MACHINE=
trap 'set +e; [[ ! $MACHINE ]] || kill -KILL "$MACHINE" 2>/dev/null; rm -rf "$WORK"' EXIT

# disk: a file system with the installed package, which begins the load once it has booted
disk() {
    local root=$WORK/root
    mkdir "$root"
    tar -xf "$BASE" -C "$root"
    cp "$1" "$root/srv/llmd.deb"
    .venv/bin/python -P - "$root/srv" <<'PY'
import sys
from pathlib import Path

sys.path.insert(0, "tests")
from gguf_writer import STR
from small_models import ATTENTION, DENSE, model, write

small = model("llama", {}, {**ATTENTION, **DENSE}, blocks=2)
small.keys["tokenizer.chat_template"] = (STR, "{{ messages[0].content }}")
write(Path(sys.argv[1]), small)
PY
    cp packaging/test_power_inside.py tests/probe.py "$root/srv/"
    cat >"$root/etc/systemd/system/load.service" <<'UNIT'
[Unit]
After=llmd.service
Wants=llmd.service
[Service]
ExecStart=/usr/bin/python3 /srv/test_power_inside.py
[Install]
WantedBy=multi-user.target
UNIT
    cat >"$root/srv/install.sh" <<'SH'
set -e
apt-get install -y --no-install-recommends /srv/llmd.deb >/tmp/install.log 2>&1 || { cat /tmp/install.log; exit 1; }
systemctl enable -q load.service
# this machine is slow
mkdir -p /etc/systemd/system/llmd.service.d
printf '[Service]\nWatchdogSec=120\nTimeoutStartSec=400\n' >/etc/systemd/system/llmd.service.d/slow.conf
rm /srv/llmd.deb
SH
    inside "$root" /srv/install.sh || fail "the package cannot be installed"
    cp "$root"/boot/vmlinuz-* "$WORK/kernel"
    cp "$root"/boot/initrd.img-* "$WORK/initrd"
    mke2fs -q -t ext4 -d "$root" -L root "$WORK/disk.img" 1800M >/dev/null
    rm -rf "$root"
}

# lines KIND: how many of them the machine has told since it was switched on
lines() { grep -c -e "^\($1\) " "$WORK/said" 2>/dev/null || true; }

# boot: until it has told enough, then its power fails. What it tells is added to $WORK/told
boot() {
    local begin=$SECONDS
    : >"$WORK/said"
    # the lines so far, as whole sectors
    cp "$WORK/told" "$WORK/told.img"
    truncate -s %1M "$WORK/told.img"
    [[ -s $WORK/told.img ]] || truncate -s 1M "$WORK/told.img"
    # what the guest has not written to its disk is gone with its memory; what it has is in this machine's
    qemu-system-x86_64 -accel tcg,thread=multi -cpu max -smp 2 -m 2048 -display none -monitor none -nic none -no-reboot \
        -serial "file:$WORK/console.log" -serial "file:$WORK/said" \
        -kernel "$WORK/kernel" -initrd "$WORK/initrd" -append 'root=/dev/vda rw console=ttyS0 quiet' \
        -drive "file=$WORK/disk.img,format=raw,if=virtio,cache=unsafe" \
        -drive "file=$WORK/told.img,format=raw,if=virtio,readonly=on" >"$WORK/qemu.log" 2>&1 &
    MACHINE=$!
    until (($(lines 'issued\|revoked\|answered') >= ENOUGH)); do
        if ! kill -0 "$MACHINE" 2>/dev/null || grep -q '^FAILED' "$WORK/said" || ((SECONDS - begin > BOOT_SECONDS)); then
            tail -n 20 "$WORK/console.log" "$WORK/qemu.log" "$WORK/said"
            fail "$(grep '^FAILED' "$WORK/said" || echo "it does not come to its load")"
        fi
        sleep 0.2
    done
    sleep "$((RANDOM % MORE_SECONDS)).$((RANDOM % 10))"
    kill -KILL "$MACHINE"
    wait "$MACHINE" 2>/dev/null || true
    MACHINE=
    cat "$WORK/said" >>"$WORK/told"
    # a line that the failure cut off was never told
    [[ ! -s $WORK/told || $(tail -c 1 "$WORK/told") == "" ]] || sed -i '$d' "$WORK/told"
}

tools debhelper dpkg-dev mmdebstrap gpg util-linux python3 python3-venv python3-pip qemu-system-x86 e2fsprogs
base
say "building"
disk "${PACKAGE:-$(packaging/deb.sh "$WORK/deb" 2>/dev/null)}"
touch "$WORK/told"
boot
say "power failed under load, $(lines 'issued\|revoked') acts and $(lines answered) requests acknowledged"
for ((time = 1; time <= TIMES; time++)); do
    boot
    say "failure $time: $(sed -n 's/^held \(.*\)/all \1 acknowledged/p' "$WORK/said") held; failed again after $(lines 'issued\|revoked') acts and $(lines answered) requests"
done
grep '^limited' "$WORK/told" >/dev/null || fail "the limit on workers' memory was not tried"
say "a worker that took more memory than it may was ended, and nothing else"
grep '^confined' "$WORK/told" >/dev/null || fail "what confines processes was not tried"
say "what reads strangers' bytes reached nothing else, on $(sed -n 's/^confined //p' "$WORK/told")"
