"""Stores on this machine, as real as they come: each gives an address, and the variables that a
process needs to reach it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SECRET = "dreamlib-test"
Reached = tuple[str, dict[str, str]]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(port: int, seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError(f"nothing listens on {port}")


@contextmanager
def served(command: list[str], port: int) -> Iterator[None]:
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, **quiet)
    try:
        wait_for(port)
        yield
    finally:
        process.kill()
        process.wait()


@contextmanager
def s3(bucket: str = "bucket") -> Iterator[Reached]:
    """Moto's server, with one bucket."""
    import boto3

    port = free_port()
    with served([sys.executable, "-m", "moto.server", "-p", str(port)], port):
        address = f"http://127.0.0.1:{port}"
        env = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": SECRET}
        env |= {"AWS_REGION": "us-east-1", "AWS_ENDPOINT_URL": address}
        client = boto3.client(
            "s3",
            region_name="us-east-1",
            endpoint_url=address,
            aws_access_key_id="key",
            aws_secret_access_key=SECRET,
        )
        client.create_bucket(Bucket=bucket)
        yield f"s3://{bucket}/some/where", env


@contextmanager
def webdav(folder: Path) -> Iterator[Reached]:
    """wsgidav, which asks for a password."""
    from cheroot.wsgi import Server
    from wsgidav.wsgidav_app import WsgiDAVApp

    folder.mkdir()
    config = {
        "provider_mapping": {"/": str(folder)},
        "simple_dc": {"user_mapping": {"*": {"me": {"password": SECRET}}}},
        "logging": {"enable": False},
        "verbose": 0,
    }
    server = Server(("127.0.0.1", free_port()), WsgiDAVApp(config))
    server.prepare()
    threading.Thread(target=server.serve, daemon=True).start()
    try:
        port = server.bind_addr[1]
        yield f"webdav+http://me@127.0.0.1:{port}/dreamlib", {"DREAMLIB_MIRROR_PASSWORD": SECRET}
    finally:
        server.stop()


def no_sshd() -> str:
    """Why there is no OpenSSH server here; '' where there is one."""
    return "" if Path("/usr/sbin/sshd").exists() and not os.geteuid() else "no sshd, or not root"


@contextmanager
def sftp(folder: Path) -> Iterator[Reached]:
    """OpenSSH's server, and a home whose key and known hosts are for it."""
    import paramiko

    home, port = folder / "home", free_port()
    (home / ".ssh").mkdir(parents=True, mode=0o700)
    key = paramiko.RSAKey.generate(2048)
    key.write_private_key_file(str(home / ".ssh/id_rsa"))
    line = f"{key.get_name()} {key.get_base64()}\n"
    (home / ".ssh/authorized").write_text(line)
    (home / ".ssh/known_hosts").write_text(f"[127.0.0.1]:{port} {line}")
    (home / "config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {home}/.ssh/id_rsa\nPidFile {home}/pid\n"
        f"AuthorizedKeysFile {home}/.ssh/authorized\nStrictModes no\nUsePAM no\n"
        "PermitRootLogin yes\nSubsystem sftp internal-sftp\n"
    )
    Path("/run/sshd").mkdir(exist_ok=True)
    with served(["/usr/sbin/sshd", "-D", "-f", str(home / "config")], port):
        yield f"sftp://root@127.0.0.1:{port}{folder}/there", {"HOME": str(home)}
