# What packaging/test_deb.sh does in the clean Debian: no network, no systemd.
set -euo pipefail

say() { printf 'test-deb:        %s\n' "$*"; }
fail() { say "FAILED: $*" && exit 1; }
mknod -m 666 /dev/null c 1 3 2>/dev/null || true

began=$(date +%s%N)
apt-get install -y --no-install-recommends /srv/llmd.deb >/tmp/install.log 2>&1 || { cat /tmp/install.log; fail install; }
[[ -f /var/lib/llmd/pki/ca.crt && $(stat -c %U /var/lib/llmd/pki) == llmd ]] || fail "the CA was not made"
[[ -f /etc/llmd/llmd.toml ]] || fail "no configuration"
getent group llmd-admin >/dev/null || fail "no group llmd-admin"

installed() { find /usr -xdev -printf '%p %s %T@\n' | sort | sha256sum; }
before=$(installed)

# by hand, as in a container
runuser -u llmd -- llmd serve >/tmp/llmd.log 2>&1 &
for _ in $(seq 100); do llmctl status >/dev/null 2>&1 && break; sleep 0.1; done
llmctl model import /srv/model.gguf --name small >/dev/null || { cat /tmp/llmd.log; fail import; }
llmctl deploy small >/dev/null || { cat /tmp/llmd.log; fail deploy; }
python3 - <<'PY'
import http.client, json, ssl
pki = "/var/lib/llmd/pki"
tls = ssl.create_default_context(cafile=f"{pki}/ca.crt")
tls.load_cert_chain(f"{pki}/clients/demo.crt", f"{pki}/clients/demo.key")
connection = http.client.HTTPSConnection("127.0.0.1", 8443, context=tls, timeout=60)
connection.request("POST", "/v1/completions", json.dumps({"prompt": "Hello", "max_tokens": 4, "ignore_eos": True}))
answer = connection.getresponse()
body = json.loads(answer.read())
assert answer.status == 200 and body["usage"]["completion_tokens"] == 4, body
PY
say "from apt install to the first token: $((($(date +%s%N) - began) / 1000000)) ms"
llmctl doctor | grep -E 'cpu engine|audit' || true
llmctl doctor | grep -q '^ok *cpu engine: ' || fail "no library was chosen for the CPU"
# this system has no package of time zones: they come along
printf '[[grants]]\nto = ["demo"]\nmodels = ["small"]\n[[limits]]\nof = ["demo"]\nhours = ["Mon-Sun"]\nzone = "Europe/Berlin"\n' >/tmp/policy.toml
{ llmctl policy edit --file /tmp/policy.toml --yes && llmctl policy test demo small /v1/completions; } || fail "a policy with hours"
llmctl policy revert 0 --yes
[[ $(installed) == "$before" ]] || fail "something was written below /usr"

# Hugging Face models are the package llmd-torch's: without it the error says so, with it a child of its converts them
chown -R llmd: /srv/Some-Model
llmctl model import /srv/Some-Model >/tmp/import.log 2>&1 && fail "a folder was imported without llmd-torch"
grep -q 'package llmd-torch, which is not installed' /tmp/import.log || { cat /tmp/import.log; fail "an import without llmd-torch"; }
apt-get install -y --no-install-recommends /srv/llmd-torch.deb >/tmp/install.log 2>&1 || { cat /tmp/install.log; fail "installing llmd-torch"; }
llmctl model import /srv/Some-Model >/tmp/import.log 2>&1 && fail "a folder that is no model was imported"
grep -q 'it cannot be converted\|lacks' /tmp/import.log || { cat /tmp/import.log; fail "an import with llmd-torch"; }
if [[ -d /srv/Real-Model ]]; then
    chown -R llmd: /srv/Real-Model
    llmctl model import /srv/Real-Model || { cat /tmp/llmd.log; fail "converting a model"; }
fi
dpkg -V llmd-torch || fail "dpkg -V llmd-torch"
[[ -f /usr/share/doc/llmd-torch/sbom.cdx.json ]] || fail "no bill of llmd-torch"
apt-get remove -y llmd-torch >/dev/null 2>&1
[[ ! -e /usr/lib/llmd-torch ]] || fail "llmd-torch leaves something"

# a library that crashes is stepped down from
used=$(sed 's/.*"variant": "\([a-z0-9]*\)".*/\1/' /var/lib/llmd/cpu.json)
pkill -TERM -u llmd -f 'llmd serve' && sleep 2
lib=$(echo /usr/lib/llmd/lib/python3.11/site-packages/llama_cpp/lib/libggml-cpu-"$used".so)
cp "$lib" /tmp/good.so
python3 - "$lib" <<'PY'
import sys
data = bytearray(open(sys.argv[1], "rb").read())
# every multiplication of quantized rows begins with an instruction that no CPU has
import struct
shoff, = struct.unpack_from("<Q", data, 40)
entsize, count, names = struct.unpack_from("<HHH", data, 58)
sections = [struct.unpack_from("<IIQQQQIIQQ", data, shoff + i * entsize) for i in range(count)]
strings = {i: s for i, s in enumerate(sections)}
spoiled = 0
for section in sections:
    if section[1] != 11:  # SHT_DYNSYM
        continue
    text = strings[section[6]]
    for at in range(section[4], section[4] + section[5], 24):
        name, info, _, index, value, size = struct.unpack_from("<IBBHQQ", data, at)
        end = data.index(0, text[4] + name)
        if data[text[4] + name : end].startswith(b"ggml_vec_dot_q") and index and size:
            holder = sections[index]
            data[holder[4] + value - holder[3]] = 0x0F
            data[holder[4] + value - holder[3] + 1] = 0x0B
            spoiled += 1
assert spoiled, "nothing to spoil"
open(sys.argv[1], "wb").write(data)
PY
rm /var/lib/llmd/cpu.json
runuser -u llmd -- llmd serve >/tmp/llmd.log 2>&1 &
for _ in $(seq 200); do llmctl status 2>/dev/null | grep -q ' ready ' && break; sleep 0.1; done
llmctl doctor | grep 'cpu engine' | grep -q "$used: crashed (SIGILL)" || { llmctl doctor; cat /tmp/llmd.log; fail "a crash was not stepped down from"; }
say "$(llmctl doctor | grep 'cpu engine' | sed 's/^[a-z]* *//')"
cp /tmp/good.so "$lib"
pkill -TERM -u llmd -f 'llmd serve' && sleep 2

# a man page for every command, and completions
pages() { # pages COMMAND...
    [[ -f /usr/share/man/man1/$(IFS=- && echo "$*").1.gz ]] || fail "no man page for $*"
    for below in $("$@" --help | sed -n '/^Commands:/,$p' | awk 'NR > 1 { print $1 }'); do pages "$@" "$below"; done
}
pages llmctl
for page in man8/llmd.8 man5/llmd.toml.5; do [[ -f /usr/share/man/$page.gz ]] || fail "no $page"; done
grep -q llmctl /usr/share/bash-completion/completions/llmctl /usr/share/zsh/vendor-completions/_llmctl || fail "no completion"
for file in llmd.dashboard.json llmd.rules.yml; do [[ -f /usr/share/llmd/$file ]] || fail "no $file"; done
dpkg -V llmd || fail "dpkg -V"
python3 - <<'PY'
import json, pathlib
bill = json.load(open("/usr/share/doc/llmd/sbom.cdx.json"))
shipped = list(pathlib.Path("/usr/lib/llmd/lib/python3.11/site-packages").glob("*.dist-info"))
assert bill["bomFormat"] == "CycloneDX" and len(bill["components"]) == len(shipped) > 30, "the bill of materials has not every wheel"
without = [one["name"] for one in bill["components"] if not one.get("licenses")]
assert not without, f"no licence is named of {without}"
assert any("pedigree" in one for one in bill["components"]), "it does not say that the engine is patched"
PY

# the GPUs' package: its libraries find each other, and what is missing here is the driver alone
apt-get install -y --no-install-recommends /srv/llmd-cuda.deb >/tmp/install.log 2>&1 || { cat /tmp/install.log; fail "installing llmd-cuda"; }
load() { /usr/lib/llmd/bin/python3 -I -c "from llmd.quantize import backends; backends.load(gpus=$1)" 2>&1 | tail -n 1; }
loaded=$(load False)
[[ $loaded != *Error* && $loaded != *"cannot be loaded"* ]] || fail "the CPU's engine beside llmd-cuda: $loaded"
[[ $(load True) == *"cannot be loaded: libggml-cuda.so: libcuda.so.1: cannot open shared object file"* ]] || fail "llmd-cuda: $(load True)"
dpkg -V llmd-cuda || fail "dpkg -V llmd-cuda"

apt-get remove -y llmd >/dev/null 2>&1
[[ ! -e /usr/lib/llmd/cuda ]] || fail "llmd-cuda is left without llmd"
[[ -f /var/lib/llmd/audit.db && ! -e /usr/lib/llmd/bin/llmd ]] || fail "remove does not keep the state"
mkdir -p /etc/systemd/system/llmd.socket.d && touch /etc/systemd/system/llmd.socket.d/network.conf # as llmctl network does
apt-get purge -y llmd >/tmp/purge.log 2>&1 || { cat /tmp/purge.log; fail "purge"; }
[[ ! -e /var/lib/llmd && ! -e /etc/systemd/system/llmd.socket.d && ! -e /etc/llmd && -f /var/backups/llmd/audit.db ]] ||
    { cat /tmp/purge.log; ls -la /var/lib/llmd /etc/llmd /var/backups; fail "what purge leaves"; }
# somebody who says that the log may go
rm -rf /var/backups/llmd
apt-get install -y --no-install-recommends /srv/llmd.deb >/tmp/install.log 2>&1 || { cat /tmp/install.log; fail "installing it again"; }
[[ -f /var/lib/llmd/audit.db ]] || fail "no state was made"
echo "llmd llmd/purge-audit boolean true" | debconf-set-selections
apt-get purge -y llmd >/tmp/purge.log 2>&1 || { cat /tmp/purge.log; fail "purge"; }
[[ ! -e /var/lib/llmd && ! -e /var/backups/llmd ]] || fail "the audit log was to go"
say "removed and purged: the audit log is kept unless somebody says otherwise"
