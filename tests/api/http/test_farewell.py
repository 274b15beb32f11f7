"""Who is not let in reads why, in the words of its own library that docs/clients.md names. A real daemon, on uvloop."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import trustme
from real_daemon import Llmd

PAGE = (Path(__file__).parents[3] / "docs" / "clients.md").read_text()
PYTHON = """
import http.client, ssl, sys
context = ssl.create_default_context(cafile="ca.crt")
if len(sys.argv) > 2:
    context.load_cert_chain("own.crt", "own.key")
connection = http.client.HTTPSConnection("127.0.0.1", int(sys.argv[1]), context=context)
connection.request("POST", "/v1/completions", "x" * 10000)
connection.getresponse()
"""
NODE = """
const https = require("node:https"), fs = require("node:fs"), file = (name) => fs.readFileSync(name);
const own = process.argv[3] ? { cert: file("own.crt"), key: file("own.key") } : {};
https.get({ host: "127.0.0.1", port: process.argv[2], ca: file("ca.crt"), ...own })
    .on("error", (e) => console.log(e.code));
"""
JAVA = """
import java.io.FileInputStream;
import java.net.URI;
import java.net.http.*;
import java.security.KeyStore;
import java.security.cert.CertificateFactory;
import javax.net.ssl.*;

public class Ask {
    public static void main(String[] given) throws Exception {
        KeyStore trusted = KeyStore.getInstance(KeyStore.getDefaultType());
        trusted.load(null, null);
        try (FileInputStream file = new FileInputStream("ca.crt")) {
            trusted.setCertificateEntry("ca", CertificateFactory.getInstance("X.509").generateCertificate(file));
        }
        TrustManagerFactory trust = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
        trust.init(trusted);
        SSLContext tls = SSLContext.getInstance("TLS");
        tls.init(null, trust.getTrustManagers(), null);
        URI at = URI.create("https://127.0.0.1:" + given[0] + "/v1/models");
        HttpClient.newBuilder().sslContext(tls).build().send(HttpRequest.newBuilder(at).build(),
            HttpResponse.BodyHandlers.ofString());
    }
}
"""


@pytest.fixture
def folder(llmd: Llmd, tmp_path: Path) -> Path:
    """With ca.crt, and a certificate that another CA has signed."""
    shutil.copy(llmd.state / "pki" / "ca.crt", tmp_path)
    foreign = trustme.CA().issue_cert("alice.example")
    foreign.private_key_pem.write_to_path(tmp_path / "own.key")
    foreign.cert_chain_pems[0].write_to_path(tmp_path / "own.crt")
    for name, text in (("ask.py", PYTHON), ("ask.js", NODE), ("Ask.java", JAVA)):
        (tmp_path / name).write_text(text)
    return tmp_path


def said(folder: Path, *command: str) -> str:
    if not shutil.which(command[0]):
        pytest.skip(f"there is no {command[0]} here")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    return done.stdout + done.stderr


def command(client: str, port: int, *, own: bool) -> list[str]:
    at, shown = f"127.0.0.1:{port}", ["own"] if own else []
    return {
        "curl": ["curl", "-sS", "--cacert", "ca.crt", *(["--cert", "own.crt", "--key", "own.key"] if own else []),
                 f"https://{at}/"],
        "openssl": ["openssl", "s_client", "-connect", at, "-CAfile", "ca.crt", "-quiet", "-ign_eof",
                    *(["-cert", "own.crt", "-key", "own.key"] if own else [])],
        "python": [sys.executable, "ask.py", str(port), *shown],
        "node": ["node", "ask.js", str(port), *shown],
        "java": ["java", "Ask.java", str(port)],
    }[client]  # fmt: skip


NONE = {
    "curl": "tlsv13 alert certificate required", "openssl": "tlsv13 alert certificate required",
    "python": "TLSV13_ALERT_CERTIFICATE_REQUIRED", "node": "ERR_SSL_TLSV13_ALERT_CERTIFICATE_REQUIRED",
    "java": "Received fatal alert: certificate_required",
}  # fmt: skip
FOREIGN = {
    "curl": "tlsv1 alert unknown ca", "openssl": "tlsv1 alert unknown ca", "python": "TLSV1_ALERT_UNKNOWN_CA",
    "node": "ERR_SSL_TLSV1_ALERT_UNKNOWN_CA",  # Java's certificates are in a store of its own
}  # fmt: skip


@pytest.mark.parametrize("client", NONE)
def test_who_shows_no_certificate_reads_why(llmd: Llmd, folder: Path, client: str) -> None:
    text = said(folder, *command(client, llmd.port, own=False))
    assert NONE[client] in text, text
    assert f"`{NONE[client]}`" in PAGE


@pytest.mark.parametrize("client", FOREIGN)
def test_who_shows_a_foreign_one_reads_why(llmd: Llmd, folder: Path, client: str) -> None:
    text = said(folder, *command(client, llmd.port, own=True))
    assert FOREIGN[client] in text, text
    assert f"`{FOREIGN[client]}`" in PAGE


def test_who_speaks_an_older_tls_reads_that_too(llmd: Llmd, folder: Path) -> None:
    text = said(folder, "openssl", "s_client", "-connect", f"127.0.0.1:{llmd.port}", "-CAfile", "ca.crt", "-tls1_2")
    assert "tlsv1 alert protocol version" in text
