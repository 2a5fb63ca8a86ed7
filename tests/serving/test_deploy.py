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


BATCH = ("batch-job.yaml", "batch-jobset-gpu.yaml", "batch-jobset-tpu.yaml")


def batch_jobs(name: str) -> list[dict[str, Any]]:
    """The Jobs of a manifest; those inside a JobSet as JobSet makes them."""
    [resource] = resources(name)
    if resource["kind"] == "Job":
        return [resource]
    # The fields of jobset.x-k8s.io/v1alpha2 in use: its schema is no part of Kubernetes
    assert (resource["apiVersion"], resource["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert resource["spec"].keys() <= {"failurePolicy", "network", "replicatedJobs", "successPolicy", "suspend"}
    assert resource["spec"]["failurePolicy"].keys() <= {"maxRestarts", "rules", "restartStrategy"}
    found = []
    for one in resource["spec"]["replicatedJobs"]:
        assert one.keys() <= {"name", "replicas", "template", "groupName", "dependsOn"}
        found.append({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": one["name"]}, **one["template"]})
    return found


@pytest.mark.parametrize("name", BATCH)
def test_batch_jobs_fit_the_schemas_of_kubernetes(name: str) -> None:
    import kubernetes_validate

    for job in batch_jobs(name):
        kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)
        job["spec"]["completionmode"] = "Indexed"
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("name", BATCH)
def test_batch_pods_know_their_share_and_their_options(name: str) -> None:
    from jaxpool.batch.share import found_share

    for job in batch_jobs(name):
        spec = job["spec"]
        assert spec["completionMode"] == "Indexed"
        [container] = spec["template"]["spec"]["containers"]
        program, *words = container["command"]
        assert program == "jaxpool"
        args = parser(words).parse_args([*words, *container["args"]])
        assert args.output
        environment = {one["name"]: one["value"] for one in container["env"]}
        for index in range(spec["completions"]):
            # a single-host slice tells every pod that it is alone
            alone = {"TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "localhost"} if "tpu" in name else {}
            share = found_share(environment=environment | alone | {"JOB_COMPLETION_INDEX": str(index)})
            assert (share.index, share.count) == (index, spec["completions"])


def test_the_slurm_script() -> None:
    from jaxpool.batch.share import found_share

    path = DEPLOY / "batch.slurm"
    assert subprocess.run(["bash", "-n", path], check=False).returncode == 0
    script = path.read_text().replace("\\\n", " ").replace("$SCRATCH", "s")
    [command] = re.findall(r"^srun jaxpool (.+)$", script, re.MULTILINE)
    words = command.replace('"', "").split()
    assert parser(words[:1]).parse_args(words).steal
    [last] = re.findall(r"^#SBATCH --array=0-(\d+)$", script, re.MULTILINE)
    given = {"SLURM_ARRAY_TASK_ID": last, "SLURM_ARRAY_TASK_MIN": "0", "SLURM_ARRAY_TASK_COUNT": str(int(last) + 1)}
    # srun adds a step of one task, which says nothing of the array
    share = found_share(environment=given | {"SLURM_PROCID": "0", "SLURM_NTASKS": "1"})
    assert (share.index, share.count) == (int(last), int(last) + 1)
