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
TESTS=(first_run watchdog killed reload sandbox upgrade disk_full)

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
    ' boot "$folder/tree" "llmd-$$-${1//_/-}" "$folder/console.log" &
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
ready() { on llmctl status | grep ' ready ' >/dev/null; }
says() { [[ $(show StatusText) == *"$1"* ]]; }
journal() { on journalctl -u llmd -o cat "${@:2}" | grep -i -e "$1" >/dev/null; }
restarts() { [[ $(show NRestarts) -ge $1 ]] && active; }

# ask STATUS [CODE]: a request is answered with this status and error
ask() {
    on /usr/bin/python3 - "$@" <<'PY'
import http.client, json, ssl, sys
pki = "/var/lib/llmd/pki"
tls = ssl.create_default_context(cafile=f"{pki}/ca.crt")
tls.load_cert_chain(f"{pki}/clients/demo.crt", f"{pki}/clients/demo.key")
connection = http.client.HTTPSConnection("127.0.0.1", 8443, context=tls, timeout=60)
connection.request("POST", "/v1/completions", json.dumps({"prompt": "Hello", "max_tokens": 2}))
answer = connection.getresponse()
said = answer.status, json.loads(answer.read()).get("error", {}).get("code", "")
wanted = int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ""
if said != wanted:
    sys.exit(f"the answer was {said}, not {wanted}")
PY
}

# --- the tests

first_run() {
    until_ 30 "it is not active after the boot" active
    [[ $(show Type) == notify ]] || fail "Type"
    [[ $(show StatusText) == *"ready: no model"* ]] || fail "status: $(show StatusText)"
    on llmctl model import /srv/model.gguf --name small >/dev/null || fail "import"
    on llmctl deploy small >/dev/null || fail "deploy"
    until_ 40 "the model is not in the status text" says "ready: small"
    # an admin who is not root
    on useradd -G llmd-admin alice
    on runuser -u alice -- llmctl status | grep small >/dev/null || fail "llmctl of a member of llmd-admin"
    on useradd mallory
    ! on runuser -u mallory -- llmctl status >/dev/null 2>&1 || fail "llmctl of anybody"
    # lines in the journal say what they are about
    until_ 10 "no line of the model in the journal" journal "small is ready" MODEL=small
    [[ $(on journalctl -u llmd SYSLOG_IDENTIFIER=llmd PRIORITY=6 -o cat | grep -c 'clients on') == 1 ]] || fail "priority in the journal"
    ! on systemctl stop llmd 2>&1 | grep . >/dev/null || fail "stop"
    [[ $(show Result) == success ]] || fail "stopped: $(show Result)"
}

watchdog() {
    until_ 30 "it is not active" active
    on mkdir -p /run/systemd/system/llmd.service.d
    printf '[Service]\nWatchdogSec=6\n' | on tee /run/systemd/system/llmd.service.d/test.conf >/dev/null
    on systemctl daemon-reload && on systemctl restart llmd
    sleep 10
    [[ $(show NRestarts) == 0 ]] || fail "a daemon that lives was ended"
    on kill -STOP "$(show MainPID)"
    until_ 30 "a stopped daemon was not replaced" restarts 1
    until_ 10 "the journal does not name the watchdog" journal watchdog
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
    local pid
    pid=$(show MainPID)
    on systemctl reload llmd || fail "reload"
    until_ 10 "it did not reload" journal '^reloaded: '
    # a broken file is said now, and harms nothing
    on sh -c 'echo "quue = 7" >>/etc/llmd/llmd.toml'
    on systemctl reload llmd || fail "reload with a broken file"
    until_ 10 "a broken file is not said" journal "there is no setting 'quue'.*the next start would fail" -p warning
    on llmctl status >/dev/null || fail "it does not answer any more"
    [[ $(show MainPID) == "$pid" && $(show NRestarts) == 0 ]] || fail "a reload restarted it"
}

sandbox() {
    until_ 30 "it is not active" active
    on systemd-analyze security --offline=yes --threshold=18 /lib/systemd/system/llmd.service >/dev/null || fail "systemd-analyze security"
    # a device that everybody may open but a service that may not
    on sh -c "rm -f /dev/fuse; mknod -m 666 /dev/fuse c 10 229"
    on runuser -u llmd -- sh -c 'true </dev/fuse' || fail "the test's device cannot be opened at all"
    on mkdir -p /run/systemd/system/llmd.service.d
    printf '[Service]\nExecStartPre=/bin/sh -c "! true </dev/fuse && true </dev/null"\nExecStartPre=/bin/sh -c "! unshare --user true"\n' |
        on tee /run/systemd/system/llmd.service.d/test.conf >/dev/null
    on systemctl daemon-reload
    on systemctl restart llmd || { on journalctl -u llmd -n 20 -o cat --no-pager && fail "what is forbidden is possible"; }
    on llmctl model import /srv/model.gguf --name small >/dev/null && on llmctl deploy small >/dev/null || fail "deploy"
}

upgrade() {
    local pid rows
    on llmctl model import /srv/model.gguf --name small >/dev/null && on llmctl deploy small >/dev/null || fail "deploy"
    on llmctl client issue alice --out /srv >/dev/null || fail "issue"
    on sh -c 'echo "queue = 65" >>/etc/llmd/llmd.toml'
    pid=$(show MainPID) rows=$(on llmctl audit query --limit 1 --json | wc -c)
    cp "$NEXT" "$WORK/upgrade/tree/srv/next.deb"
    on apt-get install -y --no-install-recommends -o Dpkg::Options::=--force-confold /srv/next.deb >"$WORK/upgrade.log" 2>&1 ||
        { cat "$WORK/upgrade.log" && fail "the upgrade"; }
    [[ $(on dpkg-query -W -f '${Version}' llmd) == 99 ]] || fail "it is not upgraded"
    until_ 30 "it is not active after the upgrade" active
    [[ $(show MainPID) != "$pid" && $(show NRestarts) == 0 ]] || fail "the upgrade did not restart it once"
    [[ $(on journalctl -u llmd -o cat | grep -c '^clients on ') == 2 ]] || fail "it started more than once"
    until_ 60 "the model does not serve after the upgrade" ready
    on grep -q '^queue = 65' /etc/llmd/llmd.toml || fail "the local configuration is lost"
    on llmctl client list | grep alice >/dev/null || fail "the clients are lost"
    ((rows > 2)) && on llmctl audit verify >/dev/null || fail "the audit log's chain"
}

disk_full() {
    local said
    until_ 30 "it is not active" active
    on systemctl stop llmd
    on sh -c 'cp -a /var/lib/llmd /srv/state && mount -t tmpfs -o size=60m tmpfs /var/lib/llmd && cp -a /srv/state/. /var/lib/llmd/ &&
        chown --reference=/srv/state /var/lib/llmd && chmod --reference=/srv/state /var/lib/llmd'
    on systemctl start llmd || fail "it does not start on a small disk"
    ! said=$(on llmctl model import /srv/model.gguf --name small 2>&1) || fail "a model that does not fit was imported"
    [[ $said == *"space"* || $said == *"free"* ]] || fail "of a full disk an import says: $said"
    on mount -o remount,size=200m /var/lib/llmd
    on llmctl model import /srv/model.gguf --name small >/dev/null 2>&1 && on llmctl deploy small >/dev/null || fail "with room again"
    ask 200 || fail "a request"
    # the audit log: what cannot be logged is not answered
    on sh -c 'cat /dev/zero >/var/lib/llmd/fill 2>/dev/null || true'
    until_ 20 "a request that cannot be logged is answered" ask 503 audit_unavailable
    until_ 40 "the status line does not say so" says "NOT WRITTEN"
    [[ $(show NRestarts) == 0 ]] && active || fail "a full disk ended it"
    on rm /var/lib/llmd/fill
    until_ 30 "no request is answered with room again" ask 200
    on llmctl audit verify >/dev/null || fail "the audit log's chain"
}

# --- all of it

tools debhelper dpkg-dev mmdebstrap gpg util-linux python3 python3-venv python3-pip systemd-container
base
say "building"
package=$(packaging/deb.sh "$WORK/deb" 2>/dev/null)
NEXT=$(VERSION=99 packaging/deb.sh "$WORK/next" 2>/dev/null)
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
