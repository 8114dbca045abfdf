"""What is measured side by side: nothing in between, nginx, a naive proxy, relay; others where they are installed.

Each contender is started afresh for a scenario, pinned to the proxy's core, and pointed at the simulated upstream.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from .cases import Case
from .processes import Cores, Program, Programs, free_port, wait_descendants, wait_listening

CHAT_PATH = "/v1/chat/completions"
HOST = "127.0.0.1"


@dataclass(frozen=True)
class Certificates:
    """A throw-away authority and one certificate for 127.0.0.1 and localhost."""

    authority: Path
    certificate: Path
    key: Path


@dataclass(frozen=True)
class Setting:
    """Where a contender is put."""

    directory: Path
    programs: Programs
    cores: Cores
    upstream_port: int
    client_tls: bool = False
    upstream_tls: bool = False
    certificates: Certificates | None = None
    keys: int = 1
    stock: tuple[int, int] = (0, 0)

    @property
    def upstream_url(self) -> str:
        return f"{'https' if self.upstream_tls else 'http'}://{HOST}:{self.upstream_port}"


@dataclass(frozen=True)
class Tally:
    """What the load client has seen of a contender since it was started."""

    calls: int
    input_tokens: int
    output_tokens: int

    def plus(self, calls: int, case: Case) -> Tally:
        return Tally(
            self.calls + calls,
            self.input_tokens + calls * case.input_tokens,
            self.output_tokens + calls * case.output_tokens,
        )


@dataclass
class Target:
    """A contender at work."""

    name: str
    host: str
    port: int
    tls: bool
    program: Program | None
    path: str = CHAT_PATH
    keys: list[str] = field(default_factory=lambda: ["sk-bench"])
    transparent: bool = True  # bytes pass unchanged both ways, so they can be compared
    server_name: str = "localhost"
    authority: Path | None = None
    model: str = ""  # what it wants to be asked for, where that is not the upstream's name
    books: Callable[[Tally], list[str]] | None = None  # differences between its records and what was called
    tally: Tally = Tally(0, 0, 0)
    ready_seconds: list[float] = field(
        default_factory=list
    )  # from the start of the process until it is ready, each start

    @property
    def authority_header(self) -> str:
        return f"{self.host}:{self.port}"


class UnavailableError(Exception):
    """The contender cannot take part here; the message says why."""


def make_certificates(directory: Path) -> Certificates:
    """ECDSA P-256, as providers mostly use. UnavailableError without the openssl program."""
    program = shutil.which("openssl")
    if not program:
        raise UnavailableError("TLS scenarios need the openssl program")

    def openssl(*words: str | Path) -> None:
        done = subprocess.run([program, *map(str, words)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise UnavailableError(f"openssl {words[0]} failed: {done.stderr.strip()}")

    authority, authority_key = directory / "authority.pem", directory / "authority.key"
    certificate, key, request = directory / "server.pem", directory / "server.key", directory / "server.csr"
    names = directory / "names"
    names.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth\n")
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl(
        "req",
        "-x509",
        *curve,
        "-keyout",
        authority_key,
        "-out",
        authority,
        "-days",
        "7",
        "-subj",
        "/CN=bench authority",
        "-addext",
        "basicConstraints=critical,CA:TRUE",
        "-addext",
        "keyUsage=critical,keyCertSign",
    )
    openssl("req", *curve, "-keyout", key, "-out", request, "-subj", "/CN=localhost")
    openssl(
        "x509",
        "-req",
        "-in",
        request,
        "-CA",
        authority,
        "-CAkey",
        authority_key,
        "-CAcreateserial",
        "-out",
        certificate,
        "-days",
        "7",
        "-extfile",
        names,
    )
    return Certificates(authority, certificate, key)


def _direct(setting: Setting) -> Target:
    """The load client speaks to the upstream: the ceiling of both, and the latency that is not the proxy's."""
    return Target("direct", HOST, setting.upstream_port, setting.upstream_tls, None)


NGINX = """\
daemon off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log {directory}/nginx-error.log crit;
worker_rlimit_nofile {files};
events {{ worker_connections {connections}; }}
http {{
    access_log off;
    client_body_temp_path {directory}/nginx-body;
    proxy_temp_path {directory}/nginx-proxy;
    fastcgi_temp_path {directory}/nginx-fastcgi;
    uwsgi_temp_path {directory}/nginx-uwsgi;
    scgi_temp_path {directory}/nginx-scgi;
    client_max_body_size 64m;
    keepalive_timeout 3600s;
    keepalive_requests 1000000000;
    upstream simulated {{
        server 127.0.0.1:{upstream_port};
        keepalive 8192;
        keepalive_requests 1000000000;
        keepalive_timeout 3600s;
        keepalive_time 24h;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=8192{ssl_listen};
        {ssl_server}
        location / {{
            proxy_pass {scheme}://simulated;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host localhost;
            proxy_buffering off;
            proxy_request_buffering off;
            proxy_read_timeout 600s;
            {ssl_upstream}
        }}
    }}
}}
"""


def _nginx(setting: Setting) -> Target:
    """A plain reverse proxy: one worker, connections kept on both sides, nothing buffered, logged or decided."""
    program = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
    if not program:
        raise UnavailableError("nginx is not installed")
    port = free_port()
    ssl_server = ssl_upstream = ""
    if setting.certificates and setting.client_tls:
        ssl_server = (
            f"ssl_certificate {setting.certificates.certificate}; ssl_certificate_key {setting.certificates.key}; "
            "ssl_protocols TLSv1.2 TLSv1.3; ssl_session_cache shared:bench:10m;"
        )
    if setting.certificates and setting.upstream_tls:
        ssl_upstream = (
            f"proxy_ssl_verify on; proxy_ssl_trusted_certificate {setting.certificates.authority}; "
            "proxy_ssl_name localhost; proxy_ssl_server_name on; proxy_ssl_protocols TLSv1.2 TLSv1.3;"
        )
    config = setting.directory / "nginx.conf"
    config.write_text(
        NGINX.format(
            directory=setting.directory,
            files=20000,
            connections=16384,
            port=port,
            upstream_port=setting.upstream_port,
            scheme="https" if setting.upstream_tls else "http",
            ssl_listen=" ssl" if setting.client_tls else "",
            ssl_server=ssl_server,
            ssl_upstream=ssl_upstream,
        )
    )
    command: list[str | Path] = [
        program,
        "-p",
        setting.directory,
        "-c",
        config,
        "-e",
        setting.directory / "nginx-error.log",
    ]
    started = setting.programs.start("nginx", command, setting.cores.proxy)
    wait_listening(started, port)
    wait_descendants(started, 1)  # the master listens before the worker, whose CPU time is wanted, exists
    return Target("nginx", HOST, port, setting.client_tls, started)


def _naive(setting: Setting) -> Target:
    """benchmarks/naive.py. Plain TCP only: it is there for scale."""
    if setting.client_tls or setting.upstream_tls:
        raise UnavailableError("the naive proxy is measured over plain TCP only")
    if not (importlib.util.find_spec("aiohttp") and importlib.util.find_spec("uvloop")):
        raise UnavailableError("aiohttp and uvloop are not installed")
    port = free_port()
    command: list[str | Path] = [
        sys.executable,
        Path(__file__).parent / "naive.py",
        f"{HOST}:{port}",
        setting.upstream_url,
    ]
    started = setting.programs.start("naive", command, setting.cores.proxy)
    wait_listening(started, port)
    return Target("naive", HOST, port, False, started)


def _relay(setting: Setting) -> Target:
    from .relay_contender import start_relay

    return start_relay("relay", setting)


def _relay_before(setting: Setting) -> Target:
    from .relay_contender import checkout_before, start_relay

    return start_relay("relay-before", setting, checkout_before())


def _relay_grown(setting: Setting) -> Target:
    from .relay_contender import start_relay

    return start_relay("relay-grown", setting)


def _envoy(setting: Setting) -> Target:
    from .peers import envoy

    return envoy(setting)


def _sglang_router(setting: Setting) -> Target:
    from .peers import sglang_router

    return sglang_router(setting)


def _tensorzero(setting: Setting) -> Target:
    from .peers import tensorzero

    return tensorzero(setting)


def _litellm(setting: Setting) -> Target:
    from .peers import litellm

    return litellm(setting)


def external(url: str, key: str) -> Callable[[Setting], Target]:
    """Any OpenAI-compatible base URL (as the SDK takes it): times and errors only, no CPU, no byte check."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"not a base URL: {url}")
    port = parts.port or (443 if parts.scheme == "https" else 80)

    def start(_setting: Setting) -> Target:
        return Target(
            "target",
            parts.hostname or "",
            port,
            parts.scheme == "https",
            None,
            path=parts.path.rstrip("/") + "/chat/completions",
            keys=[key],
            transparent=False,
            server_name=parts.hostname or "",
        )

    return start


CONTENDERS: dict[str, Callable[[Setting], Target]] = {
    "direct": _direct,
    "nginx": _nginx,
    "envoy": _envoy,
    "sglang-router": _sglang_router,
    "tensorzero": _tensorzero,
    "litellm": _litellm,
    "naive": _naive,
    "relay": _relay,
    "relay-before": _relay_before,
    "relay-grown": _relay_grown,
}
