"""The two C programs at work: the simulated upstream, and a run of the load client against one contender."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .build import Tools
from .cases import MODEL, Case, request_head, write_requests
from .contenders import HOST, Setting, Target
from .processes import ProgramError, wait_listening
from .scenarios import Load


class Upstream:
    """The simulated upstream, with the scenario's cases on its command line."""

    def __init__(self, tools: Tools, cases: Sequence[Path], setting: Setting) -> None:
        self.port = setting.upstream_port
        self._tls = setting.upstream_tls
        self._setting = setting
        command: list[str | Path] = [tools.upstream, "--listen", f"{HOST}:{self.port}"]
        if setting.upstream_tls and setting.certificates:
            command += ["--certificate", setting.certificates.certificate, "--key", setting.certificates.key]
        self.program = setting.programs.start("upstream", [*command, *cases], setting.cores.load)
        wait_listening(self.program, self.port)

    def stats(self) -> dict[str, Any]:
        """Its counters. ProgramError if it has ended."""
        self.program.check()
        connection: http.client.HTTPConnection
        if self._tls:
            import ssl

            context = ssl.create_default_context(cafile=str(self._setting.certificates.authority))  # type: ignore[union-attr]
            connection = http.client.HTTPSConnection("localhost", self.port, timeout=10, context=context)
        else:
            connection = http.client.HTTPConnection(HOST, self.port, timeout=10)
        try:
            connection.request("GET", "/bench/stats")
            document: dict[str, Any] = json.loads(connection.getresponse().read())
            return document
        finally:
            connection.close()


class LoadClient:
    """One run of the load client against one target."""

    def __init__(
        self,
        tools: Tools,
        target: Target,
        case: Case,
        case_file: Path,
        number: int,
        load: Load,
        setting: Setting,
        *,
        pids: Sequence[int] = (),
        seed: int = 1,
        model: str = MODEL,
        name: str = "load",
    ) -> None:
        if target.model:
            model = target.model
            case_file = setting.directory / f"{name}-{target.name}.case"
            case.write(case_file, number, model)
        self._name = name
        self._timeout = load.warmup_seconds + load.duration_seconds + load.drain_seconds + load.timeout_seconds + 20
        body_bytes = len(case.body(number, model))
        heads = setting.directory / f"{name}-{target.name}.requests"
        host = target.authority_header
        write_requests(heads, [request_head(host, target.path, key, body_bytes) for key in target.keys])
        options: dict[str, object] = {
            "connect": f"{target.host}:{target.port}",
            "case": case_file,
            "requests": heads,
            "connections": load.connections,
            "rate": load.rate,
            "burst": load.burst,
            "pause": load.pause_seconds,
            "warmup": load.warmup_seconds,
            "duration": load.duration_seconds,
            "drain": load.drain_seconds,
            "ramp": load.ramp_seconds,
            "timeout": load.timeout_seconds,
            "per-call-connection": int(load.per_call_connection),
            "verify": "exact" if target.transparent else "loose",
            "tls": int(target.tls),
            "server-name": target.server_name if target.tls else "",
            "authority": (setting.certificates.authority if setting.certificates and target.tls else ""),
            "pids": ",".join(map(str, pids)),
            "seed": seed,
        }
        command = [str(tools.load)]
        for option, value in options.items():
            command += [f"--{option}", str(value)]
        self.program = setting.programs.start(name, command, setting.cores.load)
        self._programs = setting.programs
        self._log = self.program.log
        self._position = self._log.stat().st_size if self.program.log.exists() else 0

    def lines(self) -> Any:
        """Its documents as they come, until it ends. ProgramError if it takes too long or fails."""
        end = time.monotonic() + self._timeout
        with self._log.open("rb") as log:
            log.seek(self._position)
            rest = b""
            while True:
                over = self.program.ended()
                rest += log.read()
                *whole, rest = rest.split(b"\n")
                for line in whole:
                    if not line.startswith(b"{"):
                        raise ProgramError(f"{self._name}: {line.decode(errors='replace')}")
                    yield json.loads(line)
                if over:
                    break
                if time.monotonic() > end:
                    raise ProgramError(f"{self._name} did not end in time")
                time.sleep(0.01)
        self._programs.stop(self.program)
        if self.program.process.returncode:
            raise ProgramError(f"{self._name} failed: {self.program.output()}")

    def stop(self) -> None:
        self._programs.stop(self.program)
