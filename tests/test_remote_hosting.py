"""The examples of how to host a server are ones that nginx, Caddy and systemd understand, where these are installed."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from layout import ROOT


def example(beginning: str) -> str:
    """The indented block of the documentation that begins with some words."""
    blocks = re.findall(r"(?:^(?:    .*)?\n)+", (ROOT / "docs" / "remote.md").read_text(), re.MULTILINE)
    (found,) = [block for block in blocks if block.strip().startswith(beginning)]
    return dedent(found).strip() + "\n"


def check(program: str, *arguments: str | Path) -> None:
    path = shutil.which(program, path="/usr/sbin:/usr/bin:/usr/local/bin")
    if path is None:
        pytest.skip(f"no {program} here")
    done = subprocess.run([path, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_service_is_one_for_systemd(tmp_path: Path) -> None:
    (tmp_path / "nnzoo.service").write_text(example("[Unit]").replace("/opt/nnzoo/bin/nnzoo", sys.executable))
    check("systemd-analyze", "verify", tmp_path / "nnzoo.service")


def test_the_proxy_is_one_for_caddy(tmp_path: Path) -> None:
    (tmp_path / "Caddyfile").write_text(example("nnzoo.example.org {"))
    check("caddy", "validate", "--config", tmp_path / "Caddyfile", "--adapter", "caddyfile")


def test_the_proxy_is_one_for_nginx(tmp_path: Path) -> None:
    conf = example("limit_conn_zone").replace("/etc/ssl", str(tmp_path))
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    folders = "".join(f"{kind}_temp_path {tmp_path}/{kind};\n" for kind in kinds)
    (tmp_path / "nginx.conf").write_text(
        f"pid {tmp_path}/pid;\nevents {{}}\nhttp {{\naccess_log off;\n{folders}{conf}\n}}\n"
    )
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=nnzoo.example.org"]
    command += ["-keyout", tmp_path / "nnzoo.key", "-out", tmp_path / "nnzoo.pem"]
    if shutil.which("openssl") is not None:
        subprocess.run(command, capture_output=True, check=True)
    check("nginx", "-t", "-e", "stderr", "-c", tmp_path / "nginx.conf")
