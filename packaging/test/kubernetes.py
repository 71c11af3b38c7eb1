"""Checks the Kubernetes manifests: schemas (two versions, strict), and facts shared with the program.

It builds the overlays by itself, with the few features of Kustomize that they use, and refuses others.
"""

import copy
import os
import re
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import yaml

ROOT = Path("packaging/kubernetes")
# The oldest release with every field that is used, and the newest.
VERSIONS = ["1.30", "1.37"]
FEATURES = {"apiVersion", "kind", "labels", "resources", "namespace", "images", "patches"}
SECRETS = {"database-url", "redis-url", "jwt-secret", "operator-token"}


def documents(path):
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def merge(into, patch):
    for key, value in patch.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = value


def containers(resource):
    return resource.get("spec", {}).get("template", {}).get("spec", {}).get("containers", [])


def identity(resource):
    return resource["kind"], resource["metadata"]["name"]


def build(directory):
    kustomization = yaml.safe_load((directory / "kustomization.yaml").read_text())
    unknown = set(kustomization) - FEATURES
    assert not unknown, f"{directory}: {unknown} is no feature that this test knows"
    patches = [patch["path"] for patch in kustomization.get("patches", [])]
    named = {"kustomization.yaml", *kustomization["resources"], *patches}
    unnamed = {path.name for path in directory.glob("*.yaml")} - named
    assert not unnamed, f"{directory}/kustomization.yaml does not name {unnamed}"
    resources = []
    for name in kustomization["resources"]:
        path = directory / name
        resources += build(path.resolve()) if path.is_dir() else documents(path)
    for patch in (document for name in patches for document in documents(directory / name)):
        of = [resource for resource in resources if identity(resource) == identity(patch)]
        assert len(of) == 1, f"{directory}: the patch {identity(patch)} fits {len(of)} resources"
        merge(of[0], patch)
    for image in kustomization.get("images", []):
        of = [c for resource in resources for c in containers(resource) if c["image"] == image["name"]]
        assert of, f"{directory}: no container has the image {image['name']}"
        for container in of:
            container["image"] = f"{image['newName']}:{image['newTag']}"
    return resources


def validate(resource):
    for version in VERSIONS:
        kubernetes_validate.validate(resource, version, strict=True)


def assert_schemas_bite(resources):
    """A misspelled field must fail, or the check above checks nothing."""
    deployment = copy.deepcopy(next(r for r in resources if r["kind"] == "Deployment"))
    container = containers(deployment)[0]
    container["readinesProbe"] = container.pop("readinessProbe")
    try:
        validate(deployment)
    except kubernetes_validate.ValidationError:
        return
    raise AssertionError("a misspelled field passed")


def assert_pods_are_confined(resource):
    pod = resource["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] and not pod["automountServiceAccountToken"]
    assert pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
    for container in pod["containers"]:
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"] and not context["allowPrivilegeEscalation"]
        assert context["capabilities"]["drop"] == ["ALL"]
        assert container["resources"]["requests"] and container["resources"]["limits"]["memory"]
        for variable in container["env"]:
            key = variable["valueFrom"]["secretKeyRef"]["key"]
            assert key in SECRETS, f"{variable['name']} comes from {key}"


def assert_role(deployment, resources, defaults):
    name = deployment["metadata"]["name"]
    role = name.removeprefix("aftercommit-")
    pod = deployment["spec"]["template"]
    container = pod["spec"]["containers"][0]
    assert container["args"] == [role]
    port = container["ports"][0]["containerPort"]
    dockerfile = Path("packaging/image/Dockerfile").read_text()
    listen = f"AFTERCOMMIT_{role.upper()}_LISTEN=0.0.0.0:{port}"
    assert listen in dockerfile, f"the image has no {listen}"
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    needed = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    needed += defaults["grace_seconds"] + (defaults["drain_seconds"] if role == "sse" else 0)
    given = pod["spec"]["terminationGracePeriodSeconds"]
    assert given > needed, f"{role} needs {needed} s to end, and has {given}"
    labels = pod["metadata"]["labels"]
    for kind, selector in [
        ("Service", lambda spec: spec["selector"]),
        ("PodDisruptionBudget", lambda spec: spec["selector"]["matchLabels"]),
    ]:
        of = [resource for resource in resources if identity(resource) == (kind, name)]
        assert len(of) == 1 and selector(of[0]["spec"]).items() <= labels.items(), f"{kind} of {role}"
    assert deployment["spec"]["replicas"] >= 2, f"a budget for one {role} would block every drain"


def assert_settings_are_known(config_map, binary):
    environment = {**os.environ, **config_map["data"]}
    shown = [binary, "config", "show"]
    done = subprocess.run(shown, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr.strip()


def main(binary):
    defaults = {
        name: int(re.search(rf"^{name} = (\d+)$", Path("config/default.toml").read_text(), re.M)[1])
        for name in ["grace_seconds", "drain_seconds"]
    }
    base = build(ROOT / "base")
    builds = [base, base + build(ROOT / "upload-api"), *map(build, sorted((ROOT / "overlays").iterdir()))]
    assert len(builds) > 2
    checked = 0
    for resources in builds:
        assert_schemas_bite(resources)
        for resource in resources:
            validate(resource)
            checked += 1
            if resource["kind"] in ("Deployment", "Job"):
                assert_pods_are_confined(resource)
            if resource["kind"] == "Deployment":
                assert_role(resource, resources, defaults)
            if resource["kind"] == "ConfigMap":
                assert_settings_are_known(resource, binary)
    versions = " and ".join(VERSIONS)
    print(f"{checked} resources of {len(builds)} builds obey the schemas of Kubernetes {versions}")


main(sys.argv[1])
