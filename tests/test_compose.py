"""docker-compose.yml and docker/Dockerfile: what they must hold, and that Docker accepts them."""

import re
import shutil
import subprocess
from typing import Any

import pytest
import yaml

from querylift.plugin.settings import load_settings
from tests.helpers.paths import ROOT

PROFILES = ("opensearch", "elasticsearch")
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]


@pytest.mark.parametrize("profile", PROFILES)
def test_each_profile_has_an_engine_a_sample_a_proxy_and_nginx(profile: str) -> None:
    services = {name for name, service in SERVICES.items() if profile in service["profiles"]}
    assert services == {profile, f"{profile}-sample", f"{profile}-proxy", f"{profile}-nginx"}
    for name in services:
        assert set(SERVICES[name]["networks"]) == {profile}, (
            "each profile needs its own network, because both use the aliases `engine` and `proxy`"
        )


@pytest.mark.parametrize("name", SERVICES)
def test_every_image_is_pinned_and_names_no_registry(name: str) -> None:
    assert re.fullmatch(r"[a-z]+(/[a-z]+)?:\d+\.\d+\.\d+(-[a-z]+)?", SERVICES[name]["image"])


def test_the_dockerfile_starts_from_a_pinned_image_and_installs_by_hash() -> None:
    dockerfile = (ROOT / "docker/Dockerfile").read_text()
    for image in re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE):
        assert re.fullmatch(r"[a-z]+:\d+\.\d+\.\d+-[a-z-]+", image)
    installs = re.findall(r"pip install (.+?)(?: \\)?$", dockerfile, re.MULTILINE)
    assert installs and all(
        "--require-hashes" in options or options == "--no-deps --no-build-isolation ." for options in installs
    )


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_published_on_loopback_only(name: str) -> None:
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port) for port in SERVICES[name].get("ports", []))


@pytest.mark.parametrize("name", [name for name in SERVICES if name.endswith(("-sample", "-proxy"))])
def test_our_containers_have_no_rights_that_they_do_not_need(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    users = re.findall(r"^USER (\S+)", (ROOT / "docker/Dockerfile").read_text(), re.MULTILINE)
    assert users and users[-1] not in ("root", "0")


def test_both_profiles_can_run_at_once() -> None:
    host_ports = [port.split(":")[1] for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(host_ports) == len(set(host_ports)) == 4


@pytest.mark.parametrize("name", [name for name in SERVICES if not name.endswith("-sample")])
def test_every_service_that_keeps_running_has_a_health_check(name: str) -> None:
    health_check = SERVICES[name]["healthcheck"]
    assert health_check["test"][0] in ("CMD", "CMD-SHELL")
    assert health_check["retries"] and health_check["interval"] and health_check["timeout"]


@pytest.mark.parametrize("profile", PROFILES)
def test_services_wait_for_the_services_that_they_need(profile: str) -> None:
    healthy = {"condition": "service_healthy"}
    assert SERVICES[f"{profile}-sample"]["depends_on"] == {profile: healthy}
    assert SERVICES[f"{profile}-proxy"]["depends_on"] == {
        profile: healthy,
        f"{profile}-sample": {"condition": "service_completed_successfully"},
    }
    assert SERVICES[f"{profile}-nginx"]["depends_on"] == {profile: healthy, f"{profile}-proxy": healthy}


@pytest.mark.parametrize("profile", PROFILES)
def test_the_proxy_serves_the_expander_that_the_sample_builds(profile: str) -> None:
    settings = load_settings(ROOT / "docker/querylift.toml", {})
    assert settings.generator == "expander:/var/lib/querylift/docs.expander"
    assert "--out /var/lib/querylift/docs.expander" in SERVICES[f"{profile}-sample"]["command"][2]
    assert SERVICES[f"{profile}-sample"]["volumes"] == [f"{profile}-expander:/var/lib/querylift"]
    assert f"{profile}-expander:/var/lib/querylift:ro" in SERVICES[f"{profile}-proxy"]["volumes"]


def test_the_mounted_files_exist_and_the_settings_are_valid() -> None:
    volumes = [
        volume for service in SERVICES.values() for volume in service.get("volumes", []) if volume.startswith("./")
    ]
    assert volumes and all((ROOT / volume.split(":")[0]).is_file() and volume.endswith(":ro") for volume in volumes)
    settings = load_settings(ROOT / "docker/querylift.toml", {})
    assert (settings.engine, settings.listen) == (("http://engine:9200",), "0.0.0.0:9280")


@pytest.mark.parametrize("profile", PROFILES)
def test_docker_compose_accepts_the_file(profile: str) -> None:
    command = _find_compose_command()
    process = subprocess.run(
        [*command, "--profile", profile, "config", "--quiet"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert process.returncode == 0, process.stderr


def _find_compose_command() -> list[str]:
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    docker = shutil.which("docker")
    if docker and subprocess.run([docker, "compose", "version"], capture_output=True).returncode == 0:
        return [docker, "compose"]
    pytest.skip("docker-compose is not installed: apt-get install docker-compose")
