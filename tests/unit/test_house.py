# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""The rules of the house that no linter knows: budgets, headers, words that must not appear."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE_LINES, TEST_LINES, FUNCTION_LINES, COMMAND_LINES = 400, 600, 60, 25
REGISTRY_HOSTS = re.compile(
    "|".join(
        (
            "py" + r"pi\.org",
            "python" + "hosted",
            "deb" + r"\.debian",
            "snapshot" + r"\.debian",
            "proxy" + r"\.golang",
            "registry" + r"\.npmjs",
            "crates" + r"\.io",
            r"repo1?\." + "maven",
        )
    )
)
MACHINE_PATHS = re.compile("/wor" + "k/|/roo" + r"t/\.|/far" + "m/|bash_" + "jobs")
UNFINISHED = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X|HA" + r"CK)\b")


def tracked() -> list[Path]:
    """Return the files of the project: what git tracks or would track, or, outside a checkout, every file."""
    try:
        listed = subprocess.run(
            ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-co", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        return [ROOT / line for line in listed.stdout.splitlines() if (ROOT / line).is_file()]
    except (OSError, subprocess.CalledProcessError):
        return [path for path in ROOT.rglob("*") if path.is_file() and "__pycache__" not in path.parts and ".git" not in path.parts]


def texts() -> Iterator[tuple[Path, str]]:
    for path in tracked():
        if path.name.endswith(".lock") or path.stat().st_size > 2_000_000:
            continue
        try:
            yield path, path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


PYTHON = [path for path in tracked() if path.suffix == ".py"]


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_no_file_names_a_package_registry_host_or_a_path_of_the_machine_it_was_written_on() -> None:
    bad = [relative(path) for path, text in texts() if REGISTRY_HOSTS.search(text) or MACHINE_PATHS.search(text)]
    assert bad == []


def test_the_host_and_path_patterns_find_what_they_should() -> None:
    assert REGISTRY_HOSTS.search("https://" + "py" + "pi.org/simple")
    assert MACHINE_PATHS.search("see /wor" + "k/here")
    assert UNFINISHED.search("# TO" + "DO later")


def test_nothing_unfinished_is_marked_in_the_source() -> None:
    assert [relative(path) for path, text in texts() if path.suffix in {".py", ".yml", ".sh"} and UNFINISHED.search(text)] == []


@pytest.mark.parametrize("path", PYTHON, ids=relative)
def test_a_python_file_keeps_its_header_and_its_budgets(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# SPDX-FileCopyrightText: The appliance authors\n# SPDX-License-Identifier: Apache-2.0\n")
    is_test = relative(path).startswith("tests/")
    assert text.count("\n") <= (TEST_LINES if is_test else SOURCE_LINES)
    is_command = relative(path).startswith("appliance/cli/")
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        body = node.body[1:] if ast.get_docstring(node) else node.body
        length = (node.end_lineno or 0) - (body[0].lineno if body else node.lineno) + 1
        assert length <= FUNCTION_LINES, f"{node.name} has {length} lines"
        if is_command and any("command" in ast.unparse(decorator) for decorator in node.decorator_list):
            assert length <= COMMAND_LINES, f"command {node.name} has {length} lines"


@pytest.mark.parametrize("path", [p for p in PYTHON if relative(p).startswith("appliance/")], ids=relative)
def test_only_the_boundaries_catch_everything_and_nothing_asks_for_the_lab(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ExceptHandler) and (node.type is None or ast.unparse(node.type) in {"Exception", "BaseException"}):
            assert relative(path) in {"appliance/cli/__init__.py", "appliance/services/runtime.py"}
        assert not isinstance(node, ast.Global)
    assert not re.search(r"\blab\b", text), "the product knows no lab"


@pytest.mark.parametrize("folder", ["playbooks", "charts"])
def test_playbooks_and_charts_know_no_lab(folder: str) -> None:
    bad = [relative(path) for path, text in texts() if relative(path).startswith(folder + "/") and re.search(r"\blab\b", text)]
    assert bad == []


def test_no_room_is_called_utils_helpers_or_common() -> None:
    assert [relative(p) for p in PYTHON if p.stem in {"utils", "helpers", "common", "util", "helper"}] == []
