#!/usr/bin/env bash
# The installed package under systemd as PID 1: a Debian 12 of its own with no network but lo, an overlay for each test.
# Root. Each test is a function below; what a test says stands in its log, which is shown where it fails.
#
#   packaging/test_appliance.sh [TEST ...]      default: all; PACKAGE=FILE.deb: that one instead of one that is built
#   TORCH_PACKAGE=FILE.deb MODEL_FOLDER=FOLDER packaging/test_appliance.sh converts      with the real llmd-torch
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

NAME=test-appliance
source packaging/debian_root.sh # CACHE, BASE, say, fail, tools, base, inside
MODEL=$PWD/.build/models/SmolLM2-135M-Instruct.Q4_1.gguf
TESTS=(first_run watchdog killed socket reload sandbox faults network upgrade disk_full)

WORK=$(mktemp -d)
BOOTED=()
NETS=()
trap 'set +e; for pid in "${BOOTED[@]}"; do kill -KILL "$pid" 2>/dev/null; done; for net in "${NETS[@]}"; do ip netns del "$net"; done; sleep 0.2
    umount -R "$WORK"/*/tree 2>/dev/null; rm -rf "$WORK"' EXIT

# first_of PID: the process 1 in the namespace of that nspawn
first_of() {
    local pid
    for pid in $(cat "/proc/$1/task/$1/children" 2>/dev/null); do
        if grep -q '^NSpid:.*\b1$' "/proc/$pid/status" 2>/dev/null; then echo "$pid" && return; fi
    done
    return 1
}

# boot NAME [ROOT] [OPTION]: a machine over that root, by default the installed one, by default without a network; sets PID1
boot() {
    local folder=$WORK/$1 i state=
    mkdir -p "$folder"/{upper,work,tree}
    mount -t overlay overlay -o "lowerdir=$WORK/${2:-installed},upperdir=$folder/upper,workdir=$folder/work" "$folder/tree"
    # a cgroup tree as on a real server: systemd alone has it
    setsid unshare --mount --propagation private bash -c '
        mount -t cgroup2 cgroup2 /sys/fs/cgroup
        mkdir -p "/sys/fs/cgroup/$2"
        echo $$ >"/sys/fs/cgroup/$2/cgroup.procs"
        exec systemd-nspawn --boot --quiet --register=no --keep-unit --console=pipe "$4" --capability=all \
            --system-call-filter="bpf landlock_create_ruleset landlock_add_rule landlock_restrict_self" --machine="$2" --hostname="$2" --directory="$1" >"$3" 2>&1 </dev/null
    ' boot "$folder/tree" "llmd-$$-${1//_/-}" "$folder/console.log" "${3:---private-network}" &
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
    unset "BOOTED[-1]"
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
    broken "$what"
}

# broken WHAT: the test fails; what the machine says of it
broken() {
    on systemctl status 'llmd*' --no-pager || true
    on journalctl -u 'llmd*' --no-pager -n 30 -o cat || true
    fail "$1"
}

show() { on systemctl show llmd -P "$1"; }
active() { [[ $(show ActiveState) == active ]]; }
ready() { on llmctl status | grep ' ready ' >/dev/null; }
says() { [[ $(show StatusText) == *"$1"* ]]; }
doctor() { { on llmctl doctor 2>&1 || true; } | grep -e "$1" >/dev/null; }
journal() { on journalctl -u llmd -o cat "${@:2}" | grep -i -e "$1" >/dev/null; }
restarts() { [[ $(show NRestarts) -ge $1 ]] && active; }

# wire: two networks between the machines SERVER and CLIENT, 10.77.0.0/24 and 10.88.0.0/24
wire() {
    local net
    SERVER=llmd-$$-server CLIENT=llmd-$$-client
    for net in "$SERVER" "$CLIENT"; do
        ip netns add "$net" && NETS+=("$net") && ip -n "$net" link set lo up
    done
    ip link add eth0 netns "$SERVER" type veth peer name eth0 netns "$CLIENT"
    for net in 10.77.0 10.88.0; do
        ip -n "$SERVER" addr add "$net.1/24" dev eth0 && ip -n "$CLIENT" addr add "$net.2/24" dev eth0
    done
    for net in "$SERVER" "$CLIENT"; do ip -n "$net" link set eth0 up; done
}

# ask STATUS [CODE]: a request is answered with this status and error; HELD=1: its answer is held to a schema
ask() {
    on /usr/bin/python3 - "${HELD:-}" "$@" <<'PY'
import http.client, json, ssl, sys
pki = "/var/lib/llmd/pki"
tls = ssl.create_default_context(cafile=f"{pki}/ca.crt")
tls.load_cert_chain(f"{pki}/clients/demo.crt", f"{pki}/clients/demo.key")
connection = http.client.HTTPSConnection("127.0.0.1", 8443, context=tls, timeout=60)
if sys.argv.pop(1):
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"enum": [1, 2]}}}
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 9, "response_format": form}
    connection.request("POST", "/v1/chat/completions", json.dumps(body))
else:
    connection.request("POST", "/v1/completions", json.dumps({"prompt": "Hello", "max_tokens": 2}))
answer = connection.getresponse()
said = answer.status, json.loads(answer.read()).get("error", {}).get("code", "")
wanted = int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ""
if said != wanted:
    sys.exit(f"the answer was {said}, not {wanted}")
PY
}

# what another version has more: Python, for daemon/state/tables.py
ADDS='
@MIGRATIONS()
def test_adds(db):
    db.execute("CREATE TABLE test_adds (name TEXT) STRICT")
    db.execute(f"PRAGMA user_version = {VERSION + 1}")
'
FAILS='
@MIGRATIONS()
def test_fails(db):
    db.execute("DROP TABLE deployments")
    db.execute("SELECT none FROM nowhere")
'

# repacked VERSION MIGRATIONS: prints the path of the package as that version, with these migrations of the state database
# and one more of the audit log
repacked() {
    local root=$WORK/llmd-$1 code
    dpkg-deb -R "$WORK/installed/srv/llmd.deb" "$root"
    code=$root/usr/lib/llmd/lib/python3.11/site-packages/llmd/daemon
    sed -i "s/^Version: .*/Version: $1/" "$root/DEBIAN/control"
    printf '\n\n%s\nVERSION += 1\n' "$2" >>"$code/state/tables.py"
    cat >>"$code/audit/writer.py" <<'PY'


@MIGRATIONS()
def test_adds(db):
    db.execute("ALTER TABLE audit ADD COLUMN test_adds TEXT")
    db.execute(f"PRAGMA user_version = {chain.SCHEMA_VERSION}")


chain.SCHEMA_VERSION += 1
PY
    /usr/bin/python3.11 -m compileall -q -f --invalidation-mode unchecked-hash "$code/state/tables.py" "$code/audit/writer.py"
    rm "$root/DEBIAN/md5sums"
    dpkg-deb -Zgzip -z1 -b "$root" "$WORK/llmd_$1.deb" >/dev/null
    rm -rf "$root"
    echo "$WORK/llmd_$1.deb"
}

# --- the tests

first_run() {
    until_ 30 "it is not active after the boot" active
    [[ $(show Type) == notify ]] || broken "Type"
    [[ $(show MemorySwapMax) == 0 ]] || broken "its memory may be swapped to a disk"
    [[ $(show StatusText) == *"ready: no model"* ]] || broken "status: $(show StatusText)"
    on llmctl model import /srv/model.gguf --name small >/dev/null || broken "import"
    on llmctl deploy small >/dev/null || broken "deploy"
    until_ 40 "the model is not in the status text" says "ready: small"
    HELD=1 ask 200 || broken "an answer that is held to a schema"
    on llmctl model quantize small --type Q3_K_S --requantize >/dev/null 2>&1 || broken "a job inside the sandbox"
    # an admin who is not root
    on useradd -G llmd-admin alice
    on runuser -u alice -- llmctl status | grep small >/dev/null || broken "llmctl of a member of llmd-admin"
    on useradd mallory
    ! on runuser -u mallory -- llmctl status >/dev/null 2>&1 || broken "llmctl of anybody"
    # a container's kernel does not limit memory: that is said
    doctor 'info  memory limits: workers have none' || broken "doctor does not say that workers' memory is not limited"
    # what reads models is confined in here too
    doctor 'ok    confinement: what reads models, schemas and templates reaches nothing else' || { on llmctl doctor || true; broken "no Landlock in the sandbox"; }
    # lines in the journal say what they are about
    until_ 10 "no line of the model in the journal" journal "small is ready" MODEL=small
    [[ $(on journalctl -u llmd SYSLOG_IDENTIFIER=llmd PRIORITY=6 -o cat | grep -c 'clients on') == 1 ]] || broken "priority in the journal"
    ! on systemctl stop llmd.socket 2>&1 | grep . >/dev/null || broken "stop"
    [[ $(show Result) == success ]] || broken "stopped: $(show Result)"
}

watchdog() {
    until_ 30 "it is not active" active
    on mkdir -p /run/systemd/system/llmd.service.d
    printf '[Service]\nWatchdogSec=6\n' | on tee /run/systemd/system/llmd.service.d/test.conf >/dev/null
    on systemctl daemon-reload && on systemctl restart llmd
    sleep 10
    [[ $(show NRestarts) == 0 ]] || broken "a daemon that lives was ended"
    on kill -STOP "$(show MainPID)"
    until_ 30 "a stopped daemon was not replaced" restarts 1
    until_ 10 "the journal does not name the watchdog" journal watchdog
}

killed() {
    local i
    on llmctl model import /srv/model.gguf --name small >/dev/null && on llmctl deploy small >/dev/null || broken "deploy"
    for ((i = 1; i <= 20; i++)); do
        on kill -KILL "$(show MainPID)"
        until_ 30 "kill $i: it did not come back" restarts "$i"
    done
    until_ 60 "the model did not come back" ready
    on llmctl audit verify >/dev/null || broken "the audit log's chain"
    # a worker's nursery and renderer are forks of it, with names of their own
    [[ $(on pgrep -u llmd -f "daemon\.engine [0-9]" | wc -l) == $((1 + $(on pgrep -u llmd "llmd-(nursery|render)" | wc -l))) &&
        $(on pgrep -c -u llmd -x llmd-nursery) == 1 ]] || broken "workers of dead daemons are left"
    [[ $(on pgrep -c -u llmd -f "answers\.judge [0-9]") == 1 ]] || broken "other children of dead daemons are left"
}

socket() {
    until_ 30 "it is not active" active
    # whoever connects while llmd is away waits, and is answered
    on /usr/bin/python3 - >"$WORK/connected" <<'PY' &
import http.client, ssl, time
pki = "/var/lib/llmd/pki"
tls = ssl.create_default_context(cafile=f"{pki}/ca.crt")
tls.load_cert_chain(f"{pki}/clients/demo.crt", f"{pki}/clients/demo.key")
end = time.monotonic() + 15
while time.monotonic() < end:
    connection = http.client.HTTPSConnection("127.0.0.1", 8443, context=tls, timeout=30)
    try:
        connection.connect()
    except ConnectionRefusedError:
        print("refused", flush=True)
    except (OSError, http.client.HTTPException):
        continue  # it was taken by the one that went
    try:
        connection.request("GET", "/livez")
        print(connection.getresponse().status, flush=True)
    except (OSError, http.client.HTTPException):
        pass
    connection.close()
    time.sleep(0.05)
PY
    local clients=$!
    sleep 1
    on systemctl restart llmd || broken "restart"
    sleep 2
    on kill -KILL "$(show MainPID)"
    until_ 30 "it did not come back" restarts 1
    wait "$clients" || broken "the client"
    [[ $(sort -u "$WORK/connected") == 200 ]] && (($(wc -l <"$WORK/connected") > 50)) ||
        broken "answers while it restarted: $(sort "$WORK/connected" | uniq -c | tr '\n' ' ')"
    # another address: what to type is said, and does it
    on sh -c 'echo "listen = \"127.0.0.1:8444\"" >>/etc/llmd/llmd.toml'
    on systemctl restart llmd 2>/dev/null && broken "it serves on another address than llmd.toml says"
    until_ 10 "the way to another address is not said" journal "systemctl daemon-reload, then systemctl restart llmd.socket"
    on systemctl daemon-reload && on systemctl restart llmd.socket || broken "restart with another address"
    until_ 10 "it does not listen on the other address" on /usr/bin/python3 -c 'import socket; socket.create_connection(("127.0.0.1", 8444), 5)'
}

reload() {
    until_ 30 "it is not active" active
    local pid
    pid=$(show MainPID)
    on sh -c 'echo "queue = 7" >>/etc/llmd/llmd.toml'
    on systemctl reload llmd || broken "reload"
    until_ 10 "what changed is not said" journal 'used from now on: queue'
    # a broken file is said now, and harms nothing
    on sh -c 'echo "quue = 7" >>/etc/llmd/llmd.toml'
    ! on systemctl reload llmd 2>/dev/null || broken "a reload with a broken file does not fail"
    until_ 10 "a broken file is not said" journal "there is no setting 'quue'.*the next start would fail"
    on llmctl status >/dev/null || broken "it does not answer any more"
    [[ $(show MainPID) == "$pid" && $(show NRestarts) == 0 ]] || broken "a reload restarted it"
}

sandbox() {
    until_ 30 "it is not active" active
    on systemd-analyze security --offline=yes --threshold=18 /lib/systemd/system/llmd.service >/dev/null || broken "systemd-analyze security"
    # a device that everybody may open but a service that may not
    on sh -c "rm -f /dev/fuse; mknod -m 666 /dev/fuse c 10 229"
    on runuser -u llmd -- sh -c 'true </dev/fuse' || broken "the test's device cannot be opened at all"
    on mkdir -p /run/systemd/system/llmd.service.d
    printf '[Service]\nExecStartPre=/bin/sh -c "! true </dev/fuse && true </dev/null"\nExecStartPre=/bin/sh -c "! unshare --user true"\n' |
        on tee /run/systemd/system/llmd.service.d/test.conf >/dev/null
    on systemctl daemon-reload
    on systemctl restart llmd || broken "what is forbidden is possible"
    on llmctl model import /srv/model.gguf --name small >/dev/null && on llmctl deploy small >/dev/null || broken "deploy"
    on sh -c 'echo "require_confinement = true" >>/etc/llmd/llmd.toml' && on systemctl restart llmd || broken "require_confinement"
    until_ 40 "the model does not come back confined" ready
}

# fault WHAT DOCTOR PLANT UNDO: doctor, as it is while the fault is planted, and no longer
fault() {
    ! doctor "$2" || broken "$1: doctor says so without it"
    on sh -c "$3" >/dev/null 2>&1 || broken "$1: it could not be planted"
    doctor "$2" || { on llmctl doctor || true; broken "$1: doctor does not find it"; }
    on sh -c "$4" >/dev/null 2>&1 || broken "$1: it could not be undone"
    FAULTS=$((FAULTS + 1))
}

# fault_at_start WHAT DOCTOR PLANT UNDO: one that keeps llmd from starting
fault_at_start() {
    on systemctl stop llmd.socket 2>/dev/null
    on sh -c "$3" >/dev/null 2>&1 || broken "$1: it could not be planted"
    on systemctl start --no-block llmd
    sleep 1
    doctor "FAIL  daemon: .*$2" || { on llmctl doctor || true; broken "$1: doctor does not find it"; }
    on systemctl stop llmd.socket llmd.service 2>/dev/null
    on sh -c "$4" >/dev/null 2>&1 || broken "$1: it could not be undone"
    on systemctl start llmd || broken "$1: it does not start any more"
    FAULTS=$((FAULTS + 1))
}

# with the ones that other tests plant (a full disk, twice; a network that nobody may come in from; no limits on memory)
faults() {
    local state=/var/lib/llmd pki=/var/lib/llmd/pki toml=/etc/llmd/llmd.toml
    FAULTS=0
    until_ 30 "it is not active" active
    on llmctl model import /srv/model.gguf --name small >/dev/null && on llmctl deploy small >/dev/null || broken "deploy"
    on systemctl stop llmd.socket
    doctor 'FAIL  daemon: it is stopped' || broken "doctor does not say that it is stopped"
    on sh -c "cp $toml /srv/llmd.toml && cp -a $state /srv/state && llmd init --state-dir /srv/other" >/dev/null 2>&1 || broken "copies"
    on systemctl start llmd || broken "start"
    cp "$(packaging/faketime.sh)" "$WORK/faults/tree/srv/"
    local back="cp /srv/llmd.toml $toml" state_back="rm $state/state.db*; cp -a /srv/state/state.db $state/"
    fault "no model" 'FAIL  models: no model is deployed' 'llmctl undeploy small' 'llmctl deploy small'
    fault "an unknown key" "FAIL  configuration: .*no setting 'quue'" "echo 'quue = 7' >>$toml" "$back"
    fault "a file for everybody" 'FAIL  configuration: .*may be written by others: chmod go-w' "chmod o+w $toml" "chmod o-w $toml"
    fault "a change that waits" 'info  configuration: changed, for the next start: listen' "echo 'listen = \"127.0.0.1:1\"' >>$toml" "$back"
    fault "a key for everybody" 'FAIL  audit.key: may be read' "chmod o+r $state/audit.key" "chmod o-r $state/audit.key"
    fault "no key of the log" 'FAIL  audit.key: is missing' "mv $state/audit.key /srv/" "mv /srv/audit.key $state/"
    fault "a foreign CA" "FAIL  ca.crt: is another CA's" "cp /srv/other/pki/ca.crt $pki/" "cp /srv/state/pki/ca.crt $pki/"
    fault "a foreign certificate" 'FAIL  server.key: ' "cp /srv/other/pki/server.key $pki/" "cp /srv/state/pki/server.key $pki/"
    fault "a damaged list" 'FAIL  crl.pem: is damaged' "echo x >$pki/crl.pem" "cp /srv/state/pki/crl.pem $pki/"
    fault "no root key" 'info  root.key: it is not here' "mv $pki/root.key /srv/; systemctl restart llmd" \
        "cp -a /srv/state/pki/root.key $pki/; systemctl restart llmd"
    fault "a certificate that ends" 'info  client certificates: 1 end soon' 'llmctl client issue eve --days 5 --out /srv' 'llmctl client revoke eve'
    fault_at_start "the port is taken" '127.0.0.1:8443: Address already in use: end what listens' \
        'setsid /usr/bin/python3 -c "import socket, time; s = socket.create_server((\"127.0.0.1\", 8443)); time.sleep(60)" & sleep 1' \
        'pkill -f "[c]reate_server"'
    fault_at_start "a wrong owner" 'chown it to the user that llmd runs as' "chown root: $state/state.db" "chown llmd: $state/state.db"
    fault_at_start "a damaged state database" 'the state database is damaged: restore it' "echo xxxxxxxxxxxxxxxxxxxxxx >$state/state.db" \
        "$state_back"
    fault_at_start "a damaged log" 'the audit log is damaged' "cp -a $state/audit.db /srv/; echo xxxxxxxxxxxxxxxxxxxxxx >$state/audit.db" \
        "cp -a /srv/audit.db $state/"
    fault_at_start "the log's key is gone" 'audit.key is missing' "mv $state/audit.key /srv/" "mv /srv/audit.key $state/"
    fault_at_start "a broken configuration" "no setting 'quue'" "echo 'quue = 7' >>$toml" "$back"
    fault_at_start "a newer state database" 'a newer llmd wrote the state database' \
        "/usr/bin/python3 -c 'import sqlite3; sqlite3.connect(\"$state/state.db\").execute(\"PRAGMA user_version = 99\")'" \
        "$state_back"
    fault_at_start "the CA's key is away" "cannot hand in the CA's key" \
        "mkdir -p -m 0700 /etc/llmd/private && mv $pki/root.key /etc/llmd/private/ && chown root: /etc/llmd/private/root.key &&
            llmctl ca-key /etc/llmd/private/root.key && mv /etc/llmd/private/root.key /srv/" 'mv /srv/root.key /etc/llmd/private/'
    doctor 'ok    ca key: systemd hands it in from /etc/llmd/private/root.key' || broken "the CA's key is not handed in"
    ! doctor 'root.key: it is not here' || broken "the CA's key that is handed in is not used"
    # a clock that is wrong is not the machine's here, but this process's
    local conf=/run/systemd/system/llmd.service.d/test.conf
    fault "a wrong clock" "FAIL  clock: this machine's clock is before the CA was made" \
        "mkdir -p ${conf%/*} && printf '[Service]\nEnvironment=LD_PRELOAD=/srv/libfaketime.so.1 FAKETIME=-400d\n' >$conf &&
            systemctl daemon-reload && systemctl restart llmd" "rm $conf && systemctl daemon-reload && systemctl restart llmd"
    until_ 60 "the model does not serve any more" ready
    on llmctl audit verify >/dev/null || broken "the audit log's chain"
    ((FAULTS >= 20)) || broken "only $FAULTS faults"
}

# reach ADDRESS: from the client's machine, with nothing but its certificate; "" or why not
reach() {
    nsenter -t "$CLIENT1" -m -u -i -n -p -C -r -w /usr/bin/python3 - "$1" <<'PY'
import http.client, ssl, sys
tls = ssl.create_default_context(cafile="/srv/ca.crt")
tls.load_cert_chain("/srv/alice.crt", "/srv/alice.key")
tls.check_hostname = sys.argv[1] == "10.77.0.1"
connection = http.client.HTTPSConnection(sys.argv[1], 8443, context=tls, timeout=3)
try:
    connection.request("GET", "/v1/models")
    print(connection.getresponse().status)
except OSError as e:
    print(type(e).__name__)
PY
}

network() {
    local server=$PID1 folder=$WORK/network/tree
    until_ 30 "it is not active" active
    on sh -c 'printf "listen = \"0.0.0.0:8443\"\nserver_names = [\"10.77.0.1\"]\n" >>/etc/llmd/llmd.toml'
    on systemctl daemon-reload && on systemctl restart llmd.socket || broken "restart on every address"
    until_ 20 "it is not back" on llmctl status
    on llmctl client issue alice --out /srv >/dev/null || broken "issue"
    boot client plain "--network-namespace-path=/run/netns/$CLIENT"
    CLIENT1=$PID1 PID1=$server
    cp "$folder"/srv/{alice.crt,alice.key,ca.crt} "$WORK/client/tree/srv/"
    doctor 'FAIL.*no other machine may reach llmd' || broken "doctor does not say that nobody may come in"
    [[ $(reach 10.77.0.1) == TimeoutError ]] || broken "an address that nobody allowed comes in: $(reach 10.77.0.1)"
    on llmctl network allow 10.77.0.0/24 >/dev/null || broken "network allow"
    [[ $(reach 10.77.0.1) == 200 ]] || broken "an allowed address does not come in: $(reach 10.77.0.1)"
    [[ $(reach 10.88.0.1) == TimeoutError ]] || broken "another address comes in: $(reach 10.88.0.1)"
    doctor '10.77.0.0/24 may reach' || broken "doctor does not show the network"
    on systemctl restart llmd && [[ $(reach 10.77.0.1) == 200 ]] || broken "after a restart"
    on llmctl network remove 10.77.0.0/24 >/dev/null && [[ $(reach 10.77.0.1) == TimeoutError ]] || broken "network remove"
    [[ $(show IPAddressAllow) != *10.77* ]] || broken "IPAddressAllow: $(show IPAddressAllow)"
    PID1=$CLIENT1 && off client
    PID1=$server
}

# install PACKAGE: over the one that is there
install() {
    cp "$1" "$WORK/upgrade/tree/srv/next.deb"
    on apt-get install -y --no-install-recommends --allow-downgrades -o Dpkg::Options::=--force-confold /srv/next.deb \
        >"$WORK/install.log" 2>&1 || { cat "$WORK/install.log" && broken "apt-get install"; }
}

upgrade() {
    local pid rows
    on llmctl model import /srv/model.gguf --name small >/dev/null && on llmctl deploy small >/dev/null || broken "deploy"
    on llmctl client issue alice --out /srv >/dev/null || broken "issue"
    on sh -c 'echo "queue = 65" >>/etc/llmd/llmd.toml'
    pid=$(show MainPID)
    # one that brings the databases forward
    install "$(repacked 99 "$ADDS")"
    [[ $(on dpkg-query -W -f '${Version}' llmd) == 99 ]] || broken "it is not upgraded"
    until_ 30 "it is not active after the upgrade" active
    [[ $(show MainPID) != "$pid" && $(show NRestarts) == 0 ]] || broken "the upgrade did not restart it once"
    [[ $(on journalctl -u llmd -o cat | grep -c '^clients on ') == 2 ]] || broken "it started more than once"
    until_ 60 "the model does not serve after the upgrade" ready
    on grep -q '^queue = 65' /etc/llmd/llmd.toml || broken "the local configuration is lost"
    on llmctl client list | grep alice >/dev/null || broken "the clients are lost"
    on sh -c 'ls /var/lib/llmd/state.db.v*' >/dev/null || broken "no copy of the state database"
    on llmctl client revoke alice >/dev/null && on llmctl client issue bob --out /srv >/dev/null || broken "clients"
    on llmctl model import /srv/model.gguf --name later >/dev/null || broken "import"
    rows=$(on llmctl status --json | grep -o '"seq": *[0-9]*' | grep -o '[0-9]*')
    # and back: who was shut out stays out, and what is lost is said
    install "$WORK/installed/srv/llmd.deb"
    until_ 60 "the model does not serve after the downgrade" ready
    until_ 10 "what is lost is not said" journal 'Lost: model later$' -p warning
    [[ $(on llmctl client list --json | grep -c '"revoked_at": "20') == 1 ]] || broken "a revocation is lost"
    on llmctl client list | grep bob >/dev/null || broken "a client is lost"
    on llmctl audit verify >/dev/null || broken "the audit log's chain"
    (($(on llmctl status --json | grep -o '"seq": *[0-9]*' | grep -o '[0-9]*') > rows)) || broken "the audit log was replaced"
    ask 200 || broken "a request"
    # one whose migration fails: the earlier version goes on where it was
    install "$(repacked 98 "$ADDS $FAILS")"
    until_ 30 "that a migration failed is not said" journal 'could not be brought from version.*install the earlier llmd again'
    install "$WORK/installed/srv/llmd.deb"
    until_ 60 "the model does not serve after a failed upgrade" ready
    on llmctl client list | grep bob >/dev/null || broken "clients are lost by a failed upgrade"
    on llmctl audit verify >/dev/null || broken "the audit log's chain"
}

converts() {
    until_ 30 "it is not active after the boot" active
    on apt-get install -y --no-install-recommends /srv/llmd-torch.deb >/dev/null 2>&1 || broken "llmd-torch cannot be installed"
    on llmctl deploy /srv/Some-Model/ --ctx 256 --slots 1 || { on llmctl jobs logs 1 || true; broken "a folder is not converted"; }
    on llmctl model show some-model | grep 'logits differ from the original' || broken "it was not held against the original"
    ask 200 || broken "a request"
}

disk_full() {
    local said
    until_ 30 "it is not active" active
    on systemctl stop llmd
    on sh -c 'cp -a /var/lib/llmd /srv/state && mount -t tmpfs -o size=60m tmpfs /var/lib/llmd && cp -a /srv/state/. /var/lib/llmd/ &&
        chown --reference=/srv/state /var/lib/llmd && chmod --reference=/srv/state /var/lib/llmd'
    on systemctl start llmd || broken "it does not start on a small disk"
    ! said=$(on llmctl model import /srv/model.gguf --name small 2>&1) || broken "a model that does not fit was imported"
    [[ $said == *"space"* || $said == *"free"* ]] || broken "of a full disk an import says: $said"
    on mount -o remount,size=200m /var/lib/llmd
    on llmctl model import /srv/model.gguf --name small >/dev/null 2>&1 && on llmctl deploy small >/dev/null || broken "with room again"
    ask 200 || broken "a request"
    doctor 'FAIL  disk: ' || broken "doctor does not find a small disk"
    # the audit log: what cannot be logged is not answered
    on sh -c 'cat /dev/zero >/var/lib/llmd/fill 2>/dev/null || true'
    until_ 20 "a request that cannot be logged is answered" ask 503 audit_unavailable
    until_ 40 "the status line does not say so" says "NOT WRITTEN"
    doctor 'FAIL  audit: the audit log cannot be written' || broken "doctor does not find a log that cannot be written"
    [[ $(show NRestarts) == 0 ]] && active || broken "a full disk ended it"
    on rm /var/lib/llmd/fill
    until_ 30 "no request is answered with room again" ask 200
    on llmctl audit verify >/dev/null || broken "the audit log's chain"
}

# --- all of it

tools debhelper dpkg-dev mmdebstrap gpg iproute2 util-linux python3 python3-venv python3-pip systemd-container
base
say "building"
package=${PACKAGE:-$(packaging/deb.sh "$WORK/deb" 2>/dev/null)}
say "installing"
mkdir "$WORK/installed"
tar -xf "$BASE" -C "$WORK/installed"
cp "$package" "$WORK/installed/srv/llmd.deb"
cp "$MODEL" "$WORK/installed/srv/model.gguf"
if [[ ${TORCH_PACKAGE:-} ]]; then
    cp "$TORCH_PACKAGE" "$WORK/installed/srv/llmd-torch.deb"
    cp -r "$MODEL_FOLDER" "$WORK/installed/srv/Some-Model"
    chmod -R a+rX "$WORK/installed/srv/Some-Model"
fi
echo 'apt-get install -y --no-install-recommends /srv/llmd.deb >/tmp/install.log 2>&1 || { cat /tmp/install.log; exit 1; }' \
    >"$WORK/installed/srv/install.sh"
inside "$WORK/installed" /srv/install.sh || fail "the package cannot be installed"
mkdir "$WORK/plain"
tar -xf "$BASE" -C "$WORK/plain"
for test in "${@:-${TESTS[@]}}"; do
    if [[ $test == network ]]; then
        wire
        boot network installed "--network-namespace-path=/run/netns/$SERVER"
    else
        boot "$test"
    fi
    "$test"
    off "$test"
    say "$test: holds"
done
