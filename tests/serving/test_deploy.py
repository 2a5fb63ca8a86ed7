"""The files in ``serving/deploy``: valid by themselves, and true of this server."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from jaxpool.commands.main import parser
from jaxpool_serving.routes import ROUTES

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "serving" / "deploy"
MANIFESTS = ("kubernetes.yaml", "kubernetes-tpu.yaml")


def resources(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def deployment(name: str) -> dict[str, Any]:
    [found] = [resource for resource in resources(name) if resource["kind"] == "Deployment"]
    return found


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_fit_the_schemas_of_kubernetes(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its import uses what Python 3.14 drops
        import kubernetes_validate
    for resource in resources(name):
        kubernetes_validate.validate(resource, kubernetes_validate.latest_version(), strict=True)


def test_a_misspelt_field_would_be_noticed() -> None:
    import kubernetes_validate

    broken = deployment("kubernetes.yaml")
    broken["spec"]["replica"] = 2
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("name", MANIFESTS)
def test_probes_ask_for_what_the_server_has(name: str) -> None:
    [container] = deployment(name)["spec"]["template"]["spec"]["containers"]
    paths = {route.path for routes in ROUTES for route in routes if hasattr(route, "path")}
    for probe, path in (("livenessProbe", "/health"), ("readinessProbe", "/ready")):
        assert container[probe]["httpGet"]["path"] == path
        assert path in paths


@pytest.mark.parametrize("name", MANIFESTS)
def test_arguments_are_options_of_the_command_and_time_to_stop_is_enough(name: str) -> None:
    pod = deployment(name)["spec"]["template"]["spec"]
    [container] = pod["containers"]
    args = parser(["serve"]).parse_args(["serve", *container["args"]])
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert pod["terminationGracePeriodSeconds"] > pause + args.shutdown_timeout


def test_the_image_is_built_from_files_that_exist_and_extras_that_exist() -> None:
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().split()
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile, re.MULTILINE)
    for source in " ".join(copied).split():
        assert (ROOT / source).exists()
        assert f"!{source}" in ignored
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {"serve", "gpu", "tpu"} <= extras.keys()
    entry = re.search(r"^ENTRYPOINT (\[.+\])$", dockerfile, re.MULTILINE)
    assert entry is not None
    program, *words = yaml.safe_load(entry[1])
    assert program == "jaxpool"
    assert parser(words).parse_args(words).host == "0.0.0.0"


def test_the_image_is_written_as_hadolint_likes_it() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, DEPLOY / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_stages_hand_over_what_was_installed() -> None:
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    installed = next(found[1] for line in lines if (found := re.search(r"python -m venv (\S+)", line)))
    assert f"COPY --from=build {installed} {installed}" in lines
    assert any(f"PATH={installed}/bin:$PATH" in line for line in lines)
    user = next(number for number, line in enumerate(lines) if line.startswith("USER"))
    assert all(not later.startswith(("RUN", "COPY")) for _, later in pairwise(lines[user:]))
