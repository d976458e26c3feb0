# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Site files: what is written is what is read; every mistake is named with what to write."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import jsonschema
import pytest

from appliance.errors import FormatError, HostError, UsageError
from appliance.install.sitefile import Accelerator, NetworkClass, Role, json_schema, load_site, parse_site
from appliance.install.siterules import check_done, check_site
from tests.support.site import SITE, site

ONE_MACHINE = (
    SITE.partition("[[machines]]")[0] + '[[machines]]\nname = "box"\naddress = "10.20.0.10"\nroles = ["depot", "control-plane", "worker"]\n'
)
SCHEMA = Path(__file__).parents[3] / "docs" / "schemas" / "site-1.json"


def test_a_valid_site_file_is_read_with_its_defaults() -> None:
    found = site()
    check_site(found)
    check_done(found)
    assert (found.name, found.line, found.accelerator) == ("harbour", "acme", Accelerator.NONE)
    assert (found.depot.name, found.depot.ssh_user, found.depot.ssh_port) == ("depot", "root", 22)
    assert [m.name for m in found.with_role(Role.GPU)] == ["gpu1"]
    assert [n.network_class for n in found.networks] == [NetworkClass.ADMIN, NetworkClass.USERS]
    assert (found.network.pod_cidr, found.network.service_cidr) == ("10.244.0.0/16", "10.96.0.0/16")


def test_a_one_machine_site_is_valid_and_refused_by_name_at_installation() -> None:
    found = site(ONE_MACHINE)
    check_site(found)
    with pytest.raises(UsageError, match=r"box.*depot that is also a node"):
        check_done(found)


@pytest.mark.parametrize(
    ("old", "new", "message", "hint"),
    [
        ('format = "site/1"', 'format = "site/2"', "newer appliance", "the release carries"),
        ('format = "site/1"\n', "", "expected format 'site/1', got None", 'format = "site/1"'),
        ('line = "acme"\n', "", "`line`", "line ="),
        ('accelerator = "none"', 'accelerator = "tpu"', "'tpu'", '"nvidia", "amd"'),
        ('accelerator = "none"', 'accelerator = "none"\ncolour = "red"', "`colour`", "remove"),
        ('cidr = "10.20.0.0/24"', "cidr = 10", "networks 1 (machines)", 'cidr = "10.20.0.0/24"'),
        ('class = "users"', 'class = "guests"', "networks 2 (offices)", 'class = "admin"'),
        ('address = "10.20.0.11"\n', "", "machines 2 (cp1)", "address ="),
        ('roles = ["control-plane"]', 'roles = ["master"]', "machines 2 (cp1)", "roles ="),
        ('roles = ["depot"]', 'roles = ["depot"]\nssh_port = "22"', "machines 1 (depot)", "ssh_port = 22"),
        ('name = "harbour"', 'name = "harbour', "not TOML", "correct the line"),
        ('name = "harbour"', f"name = {'[' * 5000}{']' * 5000}", "not TOML", "correct the line"),
        ('name = "harbour"', f"name = {'9' * 5000}", "not TOML", "correct the line"),
    ],
)
def test_a_malformed_site_file_is_refused_with_the_field_and_what_to_write(old: str, new: str, message: str, hint: str) -> None:
    assert old in SITE
    with pytest.raises(FormatError) as caught:
        parse_site(SITE.replace(old, new, 1).encode(), what="site.toml")
    assert message in caught.value.message
    assert caught.value.hint is not None
    assert hint in caught.value.hint


MACHINE = '\n[[machines]]\nname = "{}"\naddress = "{}"\nroles = {}\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SITE.replace('name = "harbour"', 'name = "Harbour"'), "'Harbour' is not a name"),
        (SITE.replace('name = "cp1"', 'name = "cp_1"'), "machines 2: name: 'cp_1'"),
        (SITE.replace('name = "gpu1"', 'name = "cp1"'), "name: 'cp1' is given 2 times"),
        (SITE.replace("10.20.0.21", "10.20.0.11"), "address: '10.20.0.11' is given 2 times"),
        (SITE.replace('name = "offices"', 'name = "machines"'), "networks: name: 'machines'"),
        (SITE.replace('roles = ["depot"]', 'roles = ["worker"]'), "expected exactly one depot, got none"),
        (SITE.replace('roles = ["control-plane"]', 'roles = ["depot"]'), "expected exactly one depot, got depot, cp1"),
        (SITE.replace('roles = ["control-plane"]', 'roles = ["worker"]'), "expected 1, 3 or 5 control planes, got 0"),
        (SITE + MACHINE.format("cp2", "10.20.0.12", '["control-plane"]'), "expected 1, 3 or 5 control planes, got 2"),
        (SITE.replace('["worker", "gpu"]', '["gpu"]'), "roles of gpu1: gpu without worker"),
        (SITE.replace('["worker", "gpu"]', '["worker", "worker"]'), "roles of gpu1: expected each role once"),
        (SITE.replace('["worker", "gpu"]', "[]"), "roles of gpu1"),
        (SITE.replace("10.20.0.21", "10.30.0.21"), "address of gpu1: 10.30.0.21 is in no admin network"),
        (SITE.replace("10.20.0.21", "10.21.0.21"), "address of gpu1: 10.21.0.21 is in no admin network"),
        (SITE.replace("10.20.0.21", "10.20.0.255"), "first or last"),
        (SITE.replace("10.20.0.21", "gpu1.internal"), "'gpu1.internal' is not an IPv4 address"),
        (SITE.replace("10.20.0.21", "fd00::1"), "'fd00::1' is not an IPv4 address"),
        (SITE.replace("10.21.0.0/24", "10.21.0.1/24"), "cidr of offices"),
        (SITE.replace("10.21.0.0/24", "10.20.0.128/25"), "network machines 10.20.0.0/24 and network offices 10.20.0.128/25 overlap"),
        (SITE.replace("10.21.0.0/24", "10.96.4.0/24"), "service_cidr 10.96.0.0/16 and network offices"),
        (SITE + '[network]\npod_cidr = "10.20.0.0/16"\n', "pod_cidr 10.20.0.0/16 and network machines"),
        (SITE + '[network]\npod_cidr = "10.96.0.0/12"\n', "pod_cidr 10.96.0.0/12 and service_cidr"),
        (SITE + '[network]\npod_cidr = "10.244.0.0/24"\n', "no room"),
        (SITE + '[network]\nservice_cidr = "10.97.0.0/28"\n', "too small"),
        (SITE.replace("accelerator", "strict_egress = true\naccelerator", 1), "strict_egress"),
        (SITE.replace("accelerator", 'outside = ["203.0.113.1"]\naccelerator', 1), "expected ADDRESS:PORT"),
        (SITE.replace("accelerator", 'outside = ["203.0.113.1:99999"]\naccelerator', 1), "expected ADDRESS:PORT"),
        (SITE.replace("accelerator", 'outside = ["203.0.113.1:\u00b2"]\naccelerator', 1), "expected ADDRESS:PORT"),
        (SITE.replace("accelerator", 'outside = ["203.0.113.1:\u0664\u0664"]\naccelerator', 1), "expected ADDRESS:PORT"),
        (SITE.replace('roles = ["depot"]', 'roles = ["depot"]\nssh_port = 0'), "ssh_port of depot"),
        *(
            (SITE.replace("accelerator", f'ssh_key = "{path}"\naccelerator', 1), "ssh_key: ")
            for path in ("id_ed25519", "~/.ssh/id", "/root/my key", "/root/%h", "/root/${HOME}", "/root/{{ x }}")
        ),
        *(
            (SITE.replace('name = "gpu1"', f'name = "{name}"'), f"name: '{name}' means something else")
            for name in ("no", "on", "true", "null", "y", "all", "ungrouped", "localhost", "cluster", "worker", "gpu")
        ),
        (SITE.replace('"depot"\n', '"store"\n').replace('name = "gpu1"', 'name = "depot"'), "'depot' without the role depot"),
        (SITE.replace('roles = ["depot"]', 'roles = ["depot"]\nssh_user = "-oProxyCommand=x"'), "ssh_user of depot"),
    ],
)
def test_a_site_that_breaks_a_rule_is_refused_with_what_was_expected_and_found(text: str, message: str) -> None:
    with pytest.raises(FormatError) as caught:
        check_site(site(text))
    assert message in caught.value.message
    assert caught.value.hint


def test_no_worker_is_refused() -> None:
    with pytest.raises(FormatError, match="no worker"):
        check_site(site(SITE.rpartition("[[machines]]")[0]))


def test_a_line_that_is_no_name_is_refused() -> None:
    with pytest.raises(UsageError, match="line"):
        check_site(site(SITE.replace('line = "acme"', 'line = "../acme"')))


@pytest.mark.parametrize("accelerator", ["nvidia", "amd", "standin"])
def test_an_accelerator_that_this_version_does_not_do_is_refused_by_name(accelerator: str) -> None:
    found = site(SITE.replace('"none"', f'"{accelerator}"'))
    check_site(found)
    with pytest.raises(UsageError, match=f"accelerator: '{accelerator}' is not done by this version"):
        check_done(found)


def test_three_control_planes_are_valid_and_refused_by_name_at_installation() -> None:
    text = SITE + MACHINE.format("cp2", "10.20.0.12", '["control-plane"]') + MACHINE.format("cp3", "10.20.0.13", '["control-plane"]')
    check_site(site(text))
    with pytest.raises(UsageError, match="3 control planes are not done"):
        check_done(site(text))


def test_a_missing_or_huge_site_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="No such file"):
        load_site(tmp_path / "none.toml")
    huge = tmp_path / "huge.toml"
    huge.write_bytes(b"#" * (1024 * 1024 + 1))
    with pytest.raises(FormatError, match="more than a site file has"):
        load_site(huge)


def test_the_published_schema_is_the_one_of_the_records_and_accepts_a_valid_file() -> None:
    schema = json.loads(SCHEMA.read_text())
    assert schema == json.loads(json.dumps(json_schema()))
    jsonschema.Draft202012Validator(schema).validate(tomllib.loads(SITE))
    bad = tomllib.loads(SITE) | {"colour": "red"}
    assert not jsonschema.Draft202012Validator(schema).is_valid(bad)
