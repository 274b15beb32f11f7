#!/usr/bin/env bash
# The installed package under systemd as PID 1: a Debian 12 of its own with no network but lo, an overlay for each test.
# Root. Each test is a function below; what a test says stands in its log, which is shown where it fails.
#
#   packaging/test_appliance.sh [TEST ...]      default: all
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

NAME=test-appliance
source packaging/debian_root.sh # CACHE, BASE, say, fail, tools, base, inside
MODEL=$PWD/.build/models/SmolLM2-135M-Instruct.Q4_1.gguf
TESTS=(first_run watchdog killed reload)

WORK=$(mktemp -d)
BOOTED=()
trap 'set +e; for pid in "${BOOTED[@]}"; do kill -KILL "$pid" 2>/dev/null; done; sleep 0.2; umount -R "$WORK"/*/tree 2>/dev/null; rm -rf "$WORK"' EXIT

# first_of PID: the process 1 in the namespace of that nspawn
first_of() {
    local pid
    for pid in $(cat "/proc/$1/task/$1/children" 2>/dev/null); do
        if grep -q '^NSpid:.*\b1$' "/proc/$pid/status" 2>/dev/null; then echo "$pid" && return; fi
    done
    return 1
}

# boot NAME: a machine over the installed root; sets PID1
boot() {
    local folder=$WORK/$1 i state=
    mkdir -p "$folder"/{upper,work,tree}
    mount -t overlay overlay -o "lowerdir=$WORK/installed,upperdir=$folder/upper,workdir=$folder/work" "$folder/tree"
    # a cgroup tree as on a real server: systemd alone has it
    setsid unshare --mount --propagation private bash -c '
        mount -t cgroup2 cgroup2 /sys/fs/cgroup
        mkdir -p "/sys/fs/cgroup/$2"
        echo $$ >"/sys/fs/cgroup/$2/cgroup.procs"
        exec systemd-nspawn --boot --quiet --register=no --keep-unit --console=pipe --private-network --capability=all \
            --system-call-filter=bpf --machine="$2" --hostname="$2" --directory="$1" >"$3" 2>&1 </dev/null
    ' boot "$folder/tree" "llmd-${1//_/-}" "$folder/console.log" &
    BOOTED+=($!)
    for ((i = 0; i < 200; i++)); do
        PID1=$(first_of $!) || true
        [[ -z $PID1 ]] || break
        sleep 0.05
    done
    [[ $PID1 ]] || { cat "$folder/console.log" && fail "$1: it does not boot"; }
    for ((i = 0; i < 300; i++)); do
        state=$(on systemctl is-system-running 2>/dev/null || true)
        case $state in running) return ;; degraded) break ;; esac
        sleep 0.1
    done
    on systemctl --failed --no-pager || true
    fail "$1: systemd says $state"
}

# on COMMAND...: in the booted machine, as root
on() { nsenter -t "$PID1" -m -u -i -n -p -C -r -w env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/srv LANG=C.UTF-8 TERM=dumb SYSTEMD_PAGER=cat "$@"; }

off() {
    on systemctl poweroff >/dev/null 2>&1 || true
    wait "${BOOTED[-1]}" 2>/dev/null || true
    umount -R "$WORK/$1/tree"
}

# until_ SECONDS WHAT COMMAND...: the command succeeds within that time
until_() {
    local seconds=$1 what=$2 i
    shift 2
    for ((i = 0; i < 10 * seconds; i++)); do
        "$@" >/dev/null 2>&1 && return
        sleep 0.1
    done
    on systemctl status llmd --no-pager || true
    on journalctl -u llmd --no-pager -n 30 -o cat || true
    fail "$what"
}

show() { on systemctl show llmd -P "$1"; }
active() { [[ $(show ActiveState) == active ]]; }
ready() { on llmctl status | grep -q ' ready '; }
restarts() { [[ $(show NRestarts) -ge $1 ]] && active; }

# --- the tests

first_run() {
    until_ 30 "it is not active after the boot" active
    [[ $(show Type) == notify ]] || fail "Type"
    [[ $(show StatusText) == *"ready: no model"* ]] || fail "status: $(show StatusText)"
    on llmctl model import /srv/model.gguf --name small >/dev/null || fail "import"
    on llmctl deploy small >/dev/null || fail "deploy"
    until_ 40 "the model is not in the status text" bash -c "[[ \$(nsenter -t $PID1 -m -p systemctl show llmd -P StatusText) == *'ready: small'* ]]"
    # an admin who is not root
    on useradd -G llmd-admin alice
    on runuser -u alice -- llmctl status | grep -q small || fail "llmctl of a member of llmd-admin"
    on useradd mallory
    ! on runuser -u mallory -- llmctl status >/dev/null 2>&1 || fail "llmctl of anybody"
    # lines in the journal say what they are about
    on journalctl -u llmd MODEL=small -o cat | grep -q 'small is ready' || fail "no line of the model in the journal"
    [[ $(on journalctl -u llmd SYSLOG_IDENTIFIER=llmd PRIORITY=6 -o cat | grep -c 'clients on') == 1 ]] || fail "priority in the journal"
    ! on systemctl stop llmd 2>&1 | grep -q . || fail "stop"
    [[ $(show Result) == success ]] || fail "stopped: $(show Result)"
}

watchdog() {
    until_ 30 "it is not active" active
    on mkdir -p /run/systemd/system/llmd.service.d
    printf '[Service]\nWatchdogSec=3\n' | on tee /run/systemd/system/llmd.service.d/test.conf >/dev/null
    on systemctl daemon-reload && on systemctl restart llmd
    sleep 7
    [[ $(show NRestarts) == 0 ]] || fail "a daemon that lives was ended"
    on kill -STOP "$(show MainPID)"
    until_ 30 "a stopped daemon was not replaced" restarts 1
    on journalctl -u llmd -o cat | grep -q -i watchdog || fail "the journal does not name the watchdog"
}

killed() {
    local i
    on llmctl model import /srv/model.gguf --name small >/dev/null && on llmctl deploy small >/dev/null || fail "deploy"
    for ((i = 1; i <= 20; i++)); do
        on kill -KILL "$(show MainPID)"
        until_ 30 "kill $i: it did not come back" restarts "$i"
    done
    until_ 60 "the model did not come back" ready
    on llmctl audit verify >/dev/null || fail "the audit log's chain"
    [[ $(on pgrep -c -u llmd -f engine) == 1 ]] || fail "workers of dead daemons are left"
}

reload() {
    until_ 30 "it is not active" active
    local pid before
    pid=$(show MainPID)
    on systemctl reload llmd || fail "reload"
    sleep 1
    on journalctl -u llmd -o cat | grep -q '^reloaded: ' || fail "it did not reload"
    [[ $(show MainPID) == "$pid" ]] || fail "a reload restarted it"
}

# --- all of it

tools debhelper dpkg-dev mmdebstrap gpg util-linux python3 python3-venv python3-pip systemd-container
base
say "building"
package=$(packaging/deb.sh "$WORK/deb" 2>/dev/null)
say "installing"
mkdir "$WORK/installed"
tar -xf "$BASE" -C "$WORK/installed"
cp "$package" "$WORK/installed/srv/llmd.deb"
cp "$MODEL" "$WORK/installed/srv/model.gguf"
echo 'apt-get install -y --no-install-recommends /srv/llmd.deb >/tmp/install.log 2>&1 || { cat /tmp/install.log; exit 1; }' \
    >"$WORK/installed/srv/install.sh"
inside "$WORK/installed" /srv/install.sh || fail "the package cannot be installed"
for test in "${@:-${TESTS[@]}}"; do
    boot "$test"
    "$test"
    off "$test"
    say "$test: holds"
done
