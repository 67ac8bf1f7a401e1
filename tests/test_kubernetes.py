"""examples/kubernetes/querylift.yaml: what it must hold, and that Querylift reads its settings and answers its probes."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from querylift.plugin.settings import load_settings
from tests.helpers.paths import ROOT
from tests.plugin.proxy.test_admin_access import ask_admin_page

MANIFEST: dict[str, Any] = {
    document["kind"]: document
    for document in yaml.safe_load_all((ROOT / "examples/kubernetes/querylift.yaml").read_text())
}
POD: dict[str, Any] = MANIFEST["Deployment"]["spec"]["template"]
CONTAINER: dict[str, Any] = POD["spec"]["containers"][0]
PROBES = {name: CONTAINER[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}


def test_the_manifest_has_what_a_cluster_needs() -> None:
    assert set(MANIFEST) == {
        "ConfigMap", "PersistentVolumeClaim", "Deployment", "Service", "PodDisruptionBudget",
    }  # fmt: skip
    labels = POD["metadata"]["labels"]
    for kind, selector in (
        ("Deployment", MANIFEST["Deployment"]["spec"]["selector"]["matchLabels"]),
        ("Service", MANIFEST["Service"]["spec"]["selector"]),
        ("PodDisruptionBudget", MANIFEST["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"]),
    ):
        assert selector.items() <= labels.items(), f"the {kind} selects other pods"
    assert MANIFEST["PodDisruptionBudget"]["spec"]["minAvailable"] < MANIFEST["Deployment"]["spec"]["replicas"]


def test_the_container_has_no_rights_that_it_does_not_need() -> None:
    assert POD["spec"]["securityContext"]["runAsNonRoot"] is True
    assert POD["spec"]["securityContext"]["runAsUser"] > 0, "the image names its user by a word, which proves nothing"
    assert POD["spec"]["automountServiceAccountToken"] is False
    assert CONTAINER["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert set(CONTAINER["resources"]["limits"]) == set(CONTAINER["resources"]["requests"]) == {"cpu", "memory"}


def test_the_settings_are_valid_and_their_ports_are_those_of_the_container(tmp_path: Path) -> None:
    file = tmp_path / "querylift.toml"
    file.write_text(MANIFEST["ConfigMap"]["data"]["querylift.toml"], encoding="utf-8")
    settings = load_settings(file, {})
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    assert settings.listen == f"0.0.0.0:{ports['search']}"
    assert settings.admin == f"0.0.0.0:{ports['admin']}"
    assert MANIFEST["Service"]["spec"]["ports"][0]["targetPort"] == "search"
    annotations = POD["metadata"]["annotations"]
    assert (annotations["prometheus.io/port"], annotations["prometheus.io/path"]) == ("9281", "/metrics")


def test_what_is_read_and_written_is_mounted() -> None:
    mounts = {mount["mountPath"]: mount for mount in CONTAINER["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in POD["spec"]["volumes"]}
    assert {mount["name"] for mount in mounts.values()} == set(volumes)
    dockerfile = (ROOT / "docker/Dockerfile").read_text()
    assert "QUERYLIFT_CONFIG=/etc/querylift/querylift.toml" in dockerfile
    assert "QUERYLIFT_CACHE=/tmp/querylift" in dockerfile
    assert mounts["/etc/querylift"]["readOnly"] and mounts["/var/lib/querylift"]["readOnly"]
    assert "emptyDir" in volumes[mounts["/tmp"]["name"]]


def test_liveness_asks_nobody_and_readiness_asks_the_engine() -> None:
    assert {probe["port"] for probe in PROBES.values()} == {"admin"}
    assert PROBES["startupProbe"]["path"] == PROBES["livenessProbe"]["path"] == "/_querylift/live"
    assert PROBES["readinessProbe"]["path"] == "/_querylift/ready"


@pytest.mark.parametrize("name", PROBES)
def test_the_admin_page_has_the_path_of_each_probe_and_asks_it_for_no_token(name: str) -> None:
    status, _ = ask_admin_page(PROBES[name]["path"], {"Host": "10.0.0.7:9281"}, admin_token="secret")
    assert status == (503 if name == "readinessProbe" else 200)


def test_the_searches_under_way_have_time_to_end() -> None:
    pre_stop_s = int(CONTAINER["lifecycle"]["preStop"]["exec"]["command"][1])
    drain_s = 10  # timeout_graceful_shutdown in plugin/proxy/server.py
    assert POD["spec"]["terminationGracePeriodSeconds"] > pre_stop_s + drain_s
