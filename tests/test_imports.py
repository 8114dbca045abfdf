"""The layering is a fact, not a drawing: imports go one way, and every module can be imported alone."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import relay

ROOT = Path(relay.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in ROOT.rglob("*.py")
)

# A layer may import itself and what is named; everything may import the foundation.
FOUNDATION = {
    "relay",
    "units",
    "errors",
    "records",
    "config",
    "config_values",
    "_fastpath",
    "activation",
    "capacity",
    "hardening",
    "quiet",
    "rate_files",
    "shipped_rates",
}
ALLOWED = {
    "wire": {"wire"},
    "policy": {"policy"},
    "storage": {"storage"},
    "simulator": {"simulator"},
    "observe": {"observe", "policy"},
    "proxy": {"proxy", "wire", "policy", "storage"},
    "control": {"control", "wire", "policy", "storage"},
    "app": {"app", "demo", "observe", "proxy", "control", "wire", "policy", "storage"},
    "demo": {"app", "demo", "observe", "proxy", "control", "wire", "policy", "storage", "simulator"},
}


def layer_of(module: str) -> str:
    parts = module.split(".")
    return "relay" if len(parts) == 1 else parts[1]


def imports_of(module: str) -> set[str]:
    path = ROOT.parent.joinpath(*module.split("."))
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    found = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            if node.module == "relay":
                found |= {f"relay.{alias.name}" for alias in node.names if alias.name != "__version__"}
    return {name for name in found if name == "relay" or name.startswith("relay.")}


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module: str) -> None:
    layer = layer_of(module)
    if layer.startswith("cli") or layer == "__main__":
        return  # the top: may import anything
    allowed = FOUNDATION | ({"relay"} if layer in FOUNDATION else ALLOWED[layer])
    wrong = {name for name in imports_of(module) if layer_of(name) not in allowed}
    assert not wrong


def test_policy_does_no_io_and_has_no_clock() -> None:
    forbidden = {"time", "socket", "asyncio", "sqlite3", "aiosqlite", "aiohttp", "os", "subprocess"}
    for module in MODULES:
        if layer_of(module) == "policy":
            path = ROOT.parent.joinpath(*module.split("."))
            source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
            for node in ast.walk(ast.parse(source.read_text())):
                names = {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
                if isinstance(node, ast.ImportFrom) and node.module:
                    names.add(node.module)
                assert not names & forbidden, module


def test_the_compiled_module_imports_nothing_of_relay() -> None:
    for path in [ROOT / "_fastpath.pyx", *(ROOT / "fastpath").iterdir()]:
        for line in path.read_text().splitlines():
            assert not line.strip().startswith(("from relay", "import relay")), path


def test_every_module_imports_alone_without_warnings() -> None:
    script = "import sys, importlib, warnings\nwarnings.simplefilter('error')\n" + "".join(
        f"importlib.import_module({module!r})\n" for module in MODULES if not module.endswith("__main__")
    )
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True, capture_output=True, timeout=60)
