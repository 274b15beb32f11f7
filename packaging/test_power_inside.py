"""In the machine whose power fails (packaging/test_power.sh): tells the host what was acknowledged, and after a failure
holds llmd to all of it. Debian's Python, nothing else.

The second serial port takes a line an event; the second disk has the lines of the boots before this one.
"""

import http.client
import json
import os
import platform
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

PKI = Path("/var/lib/llmd/pki")
MODEL = "tiny"
# where tests/probe.py is planted in whatever the service starts, and tells what it reached
PROBE = Path("/var/lib/llmd/probe")
DROP_IN = Path("/run/systemd/system/llmd.service.d/probe.conf")
OPENING, SEALED = {"quantize/check", "engine/trial", "engine/__main__"}, {"answers/judge", "llmd-render"}
LANDLOCK = 2  # of Debian 12's kernel
REVOKE_EVERY = 3
READY_SECONDS = 240.0

PORT = Path("/dev/ttyS1").open("wb", buffering=0)
TURN = threading.Lock()


def say(*words: str) -> None:
    with TURN:
        PORT.write(" ".join(words).encode() + b"\n")


class Admin(http.client.HTTPConnection):
    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect("/run/llmd/admin.sock")


def admin(method: str, route: str, body: Any = None, **query: Any) -> dict[str, Any]:
    connection = Admin("llmd", timeout=120)
    connection.request(
        method, route + ("?" + urlencode(query) if query else ""), None if body is None else json.dumps(body),
        {"Content-Type": "application/json"},
    )  # fmt: skip
    answer = connection.getresponse()
    read = answer.read()
    connection.close()
    if answer.status != 200:
        raise SystemExit(f"{route}: {answer.status} {read[:300]!r}")
    found: dict[str, Any] = json.loads(read)
    return found


def ask(tls: ssl.SSLContext) -> str:
    """One request; its id, once it is answered."""
    connection = http.client.HTTPSConnection("127.0.0.1", 8443, context=tls, timeout=120)
    body = json.dumps({"prompt": "Hello", "max_tokens": 2})
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.headers["X-Request-Id"] if answer.status == 200 else ""


def acknowledged() -> list[list[str]]:
    """The whole lines of the boots before this one."""
    text = Path("/dev/vdb").read_bytes().rstrip(b"\0")
    return [line.decode().split() for line in text[: text.rfind(b"\n") + 1].splitlines()]


def held(lines: list[list[str]]) -> str:
    """What is not as it was acknowledged; "": all is."""
    done = subprocess.run(["llmctl", "audit", "verify"], capture_output=True, text=True, check=False)
    if done.returncode:
        return f"the chain: {done.stdout}{done.stderr}"
    clients = {c["name"]: c for c in admin("GET", "/clients")["clients"]}
    rows: list[dict[str, Any]] = []
    after = 0
    while after is not None:
        page = admin("GET", "/audit/query", limit=0, after=after)
        rows += page["rows"]
        after = page["after"]
    admitted = {row["request"] for row in rows if row["kind"] == "admit"}
    begun = {(row["kind"], row["body"].get("client")) for row in rows if row["body"].get("result") == "begun"}
    for kind, *names in lines:
        name = names[0] if names else ""
        if kind == "answered" and name not in admitted:
            return f"request {name} was answered and is not in the audit log"
        if kind == "issued" and (name not in clients or ("admin.client_issue", name) not in begun):
            return f"client {name} was issued and is not known"
        if kind == "revoked":
            good = [c for c in clients.get(name, {}).get("certificates", []) if c["revoked_at"] is None]
            if name not in clients or good or ("admin.client_revoke", name) not in begun:
                return f"client {name} was revoked and is not"
        if kind == "deployed" and not any(m["model"] == name for m in admin("GET", "/status")["models"]):
            return f"model {name} was deployed and is not"
    return ""


def until_ready() -> None:
    end = time.monotonic() + READY_SECONDS
    while time.monotonic() < end:
        if any(m["state"] == "ready" for m in admin("GET", "/status")["models"]):
            return
        time.sleep(0.5)
    raise SystemExit("the model is not ready")


def planted() -> None:
    """From now on the service's processes are probed."""
    PROBE.mkdir()
    shutil.copy("/srv/probe.py", PROBE)
    (PROBE / "sitecustomize.py").write_text("import probe\nprobe.main()\n")
    state = PROBE.parent
    terms = {
        "files": [str(state / name) for name in ("pki/root.key", "audit.key", "audit.db", "state.db")],
        "folders": [str(state), str(state / "models"), "/tmp", "/dev/shm"], "stream": "/run/llmd/admin.sock",
        "datagram": "/run/systemd/journal/dev-log", "port": 8443, "pid": 0, "version": 0,
    }  # fmt: skip
    (PROBE / "terms.json").write_text(json.dumps(terms))
    (PROBE / "found").touch()
    shutil.chown(PROBE / "found", "llmd", "llmd")
    DROP_IN.parent.mkdir(exist_ok=True)
    DROP_IN.write_text(f"[Service]\nEnvironment=PYTHONPATH={PROBE}\n")
    systemctl("daemon-reload")
    systemctl("restart", "llmd")


def confined(tls: ssl.SSLContext) -> str:
    """What of the processes that read strangers' bytes reached something else; "": none did. This kernel's Landlock is
    of the version that all of it is promised for."""
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"enum": [1, 2]}}}
    body = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2, "response_format": form}
    connection = http.client.HTTPSConnection("127.0.0.1", 8443, context=tls, timeout=120)
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    connection.getresponse().read()
    connection.close()
    found = {line.pop("place"): line for line in map(json.loads, (PROBE / "found").read_text().splitlines())}
    if found.keys() != OPENING | SEALED:
        return f"probed were {sorted(found)}"
    for place, told in found.items():
        able = told["able"] if place in SEALED else told["unable"]
        if told["done"] or able or len(told["refused"]) < 60:
            return f"{place} can: {', '.join(told['done'])}; of its own: {', '.join(able)}"
    version = admin("GET", "/status")["confinement"]["landlock"]
    os.remove(DROP_IN)
    shutil.rmtree(PROBE)
    systemctl("daemon-reload")
    systemctl("restart", "llmd")
    until_ready()
    return "" if version == LANDLOCK else f"this kernel's Landlock is of version {version}"


def systemctl(*words: str) -> None:
    subprocess.run(["systemctl", *words], check=True)


def limited() -> str:
    """What is wrong with the limit on a worker's memory; "": it has one, which the kernel holds it to, alone."""
    service = Path("/sys/fs/cgroup/system.slice/llmd.service")
    before = {line for line in (service / "daemon" / "cgroup.procs").read_text().split()}
    (group,) = service.glob("worker-*")
    if not (group / "memory.max").read_text().strip().isdecimal():
        return "a worker's memory has no limit"
    names = [Path(f"/proc/{pid}/comm").read_text().strip() for pid in (group / "cgroup.procs").read_text().split()]
    if len([name for name in names if name not in ("llmd-nursery", "llmd-render")]) != 1:
        return f"a worker is not alone in its group: {names}"
    (group / "memory.max").write_text("4M")
    end = time.monotonic() + READY_SECONDS
    while time.monotonic() < end:
        model = admin("GET", "/status")["models"][0]
        if model["restarts"]:
            break
        time.sleep(0.2)
    else:
        return "a worker that holds more than its limit is not ended"
    if "took more memory" not in model["reason"] and model["state"] != "ready":
        return f"of such an end is said: {model['reason']}"
    until_ready()
    if not before <= set((service / "daemon" / "cgroup.procs").read_text().split()):
        return "the daemon was ended with it"
    return "" if not group.exists() and len(list(service.glob("worker-*"))) == 1 else "its group is left"


def requests(tls: ssl.SSLContext) -> None:
    while True:
        if name := ask(tls):
            say("answered", name)


def main() -> None:
    before = acknowledged()
    tls = ssl.create_default_context(cafile=str(PKI / "ca.crt"))
    tls.load_cert_chain(PKI / "clients" / "demo.crt", PKI / "clients" / "demo.key")
    if not any(line[0] == "deployed" for line in before):
        planted()
        subprocess.run(["llmctl", "model", "import", "/srv/model.gguf", "--name", MODEL], check=True)
        subprocess.run(["llmctl", "deploy", MODEL], check=True)
        if problem := confined(tls):
            raise SystemExit(problem)
        say("confined", "Linux", platform.release(), "Landlock", str(LANDLOCK))
        say("deployed", MODEL)
    if problem := held(before):
        raise SystemExit(problem)
    say("held", str(len(before)))
    until_ready()
    if before and ["limited"] not in before:
        if problem := limited():
            raise SystemExit(problem)
        say("limited")
    for _ in range(2):
        threading.Thread(target=requests, args=(tls,), daemon=True).start()
    number = len(before)
    while True:
        name = f"c{number}"
        admin("POST", "/clients", {"name": name, "days": 1})
        say("issued", name)
        if number % REVOKE_EVERY == 0:
            admin("DELETE", f"/clients/{name}")
            say("revoked", name)
        number += 1


if __name__ == "__main__":
    try:
        main()
    except SystemExit as e:
        say("FAILED", str(e.code).replace("\n", " "))
        sys.exit(1)
    except Exception as e:
        say("FAILED", type(e).__name__, str(e).replace("\n", " "))
        raise
