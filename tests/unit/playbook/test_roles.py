# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Rules of the playbooks that ansible-lint does not know."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from appliance.adapters.playbook import playbooks_folder

ROLES = sorted(path for path in (playbooks_folder() / "roles").iterdir() if path.is_dir())
KEYWORDS = {
    *("name", "when", "register", "loop", "loop_control", "vars", "environment", "changed_when", "failed_when", "check_mode", "no_log"),
    *("delegate_to", "block", "tags", "become", "until", "retries", "delay"),
}


def documents(role: Path, folder: str) -> Iterator[tuple[Path, list[dict[str, object]]]]:
    for path in sorted((role / folder).glob("*.yml")):
        yield path, yaml.safe_load(path.read_text())


def tasks_of(items: list[dict[str, object]]) -> Iterator[dict[str, object]]:
    for item in items:
        yield item
        block = item.get("block")
        if isinstance(block, list):
            yield from tasks_of(block)


def all_tasks() -> Iterator[tuple[Path, dict[str, object]]]:
    for role in ROLES:
        for path, items in documents(role, "tasks"):
            yield from ((path, task) for task in tasks_of(items))


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_every_default_is_documented_with_its_type_and_what_has_none_is_required(role: Path) -> None:
    specs = yaml.safe_load((role / "meta/argument_specs.yml").read_text())["argument_specs"]
    documented = {name for spec in specs.values() for name in spec["options"]}
    defaults = set(yaml.safe_load((role / "defaults/main.yml").read_text()))
    required = {name for spec in specs.values() for name, option in spec["options"].items() if option.get("required")}
    assert defaults <= documented
    assert documented - defaults <= required
    assert all(option.get("description") and option.get("type") for spec in specs.values() for option in spec["options"].values())


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_every_way_into_a_role_has_its_own_spec(role: Path) -> None:
    specs = yaml.safe_load((role / "meta/argument_specs.yml").read_text())["argument_specs"]
    callers = [*playbooks_folder().glob("*.yml"), *playbooks_folder().glob("roles/*/tasks/*.yml")]
    plays = "".join(path.read_text() for path in callers)
    entries = set(re.findall(rf"name: {role.name}\n +tasks_from: (\w+)\.yml", plays))
    if re.search(rf"name: {role.name}\n(?! +tasks_from)", plays):
        entries.add("main")
    assert entries == set(specs)


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_every_variable_of_a_role_has_its_prefix(role: Path) -> None:
    for folder in ("defaults", "vars"):
        for path in sorted((role / folder).glob("*.yml")):
            assert all(name.startswith(f"{role.name}_") for name in yaml.safe_load(path.read_text()))


def test_no_task_ignores_errors_and_every_module_is_builtin() -> None:
    for path, task in all_tasks():
        assert "ignore_errors" not in task, path
        modules = task.keys() - KEYWORDS
        assert all(module.startswith("ansible.builtin.") for module in modules), (path, modules)
        assert not modules & {"ansible.builtin.shell", "ansible.builtin.raw"}, path


def test_every_command_says_whether_it_changed_something() -> None:
    for path, task in all_tasks():
        command = task.get("ansible.builtin.command")
        if isinstance(command, dict):
            assert "changed_when" in task or "creates" in command, (path, task["name"])


def test_what_holds_a_join_token_is_censored() -> None:
    for path, task in all_tasks():
        text = yaml.safe_dump({key: value for key, value in task.items() if key != "name"})
        if re.search(r"init\.yaml\.j2|run/appliance/\{\{|admin\.conf$|password|b64decode", text, re.MULTILINE) and "mounts" not in text:
            assert task.get("no_log") is True or "kubeadm" in text, (path, task["name"])


def test_nothing_knows_of_the_lab() -> None:
    for path in playbooks_folder().rglob("*"):
        if path.is_file():
            assert not re.search(r"\b(lab|nspawn)\b", path.read_text()), path


def test_no_address_leads_outside() -> None:
    for path in playbooks_folder().rglob("*"):
        if path.is_file():
            for address in re.findall(r"https?://[^\s\"']+", path.read_text()):
                assert address.startswith(("https://{{", "https://docs")), (path, address)
