"""nginx by the configuration of deploy/proxy, with a test's addresses, paths and certificate."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from support.checkout import REPOSITORY
from support.deployment import HOST, kill, wait_until

CONFIGURATION = REPOSITORY / "deploy" / "proxy" / "nginx.conf"
INSTALL = "nginx is not installed: apt-get install nginx-light"


def find_nginx() -> str | None:
    return shutil.which("nginx") or shutil.which("/usr/sbin/nginx")


@dataclass(frozen=True)
class Proxy:
    """A running proxy: its address, the authority that signed its certificate, and its processes."""

    port: int
    authority: Path
    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"https://{HOST}:{self.port}"

    def open_files(self) -> set[str]:
        """What its processes hold open, files without a name among them."""
        parent = self.process.pid
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        links = [link for child in children for link in Path(f"/proc/{child}/fd").iterdir()]
        return {str(link.readlink()) for link in links if link.is_symlink()}

    def log(self) -> str:
        return (self.folder / "access.log").read_text()


@contextmanager
def proxied(folder: Path, api_port: int, **changes: str) -> Iterator[Proxy]:
    """Run nginx in front of an API; `changes` are directives with other values."""
    program = find_nginx()
    assert program is not None, INSTALL
    folder.mkdir()
    authority = make_certificates(folder)
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    text = CONFIGURATION.read_text()
    replacements = {
        " /tmp/": f" {folder}/",
        "listen 8443 ssl": f"listen {HOST}:{port} ssl",
        "api:8080;": f"{HOST}:{api_port};",
        "/etc/gramfuse/tls/": f"{folder}/",
        "/dev/stderr": f"{folder}/error.log",
        "/dev/stdout": f"{folder}/access.log",
    } | {f"{directive} off;": f"{directive} {value};" for directive, value in changes.items()}
    for before, after in replacements.items():
        assert before in text, before
        text = text.replace(before, after)
    user = "user root; " if os.geteuid() == 0 else ""  # its usual one may not enter pytest's folders
    (folder / "nginx.conf").write_text(f"daemon off; {user}{text}")
    process = subprocess.Popen([program, "-p", str(folder), "-e", str(folder / "error.log"), "-c", "nginx.conf"])

    def listens() -> bool:
        assert process.poll() is None, (folder / "error.log").read_text()
        with socket.socket() as probe:
            return probe.connect_ex((HOST, port)) == 0

    try:
        wait_until(listens, seconds=30, what="nginx")
        yield Proxy(port, authority, folder, process)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            kill(process)


def make_certificates(folder: Path) -> Path:
    """Make an authority and a certificate of 127.0.0.1 that it signed; return the authority's file."""
    authority_key, server_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "an authority of our own")])
    alternative = x509.SubjectAlternativeName([x509.IPAddress(ip_address(HOST))])
    signer = _certificate(authority, authority, authority_key, authority_key, x509.BasicConstraints(True, 0))
    server = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOST)])
    certificate = _certificate(server, authority, server_key, authority_key, alternative)
    (folder / "authority.pem").write_bytes(signer.public_bytes(Encoding.PEM))
    (folder / "fullchain.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    key = server_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (folder / "privkey.pem").write_bytes(key)
    return folder / "authority.pem"


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    signing: ec.EllipticCurvePrivateKey,
    extension: x509.ExtensionType,
) -> x509.Certificate:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(extension, critical=False)
        .sign(signing, hashes.SHA256())
    )
