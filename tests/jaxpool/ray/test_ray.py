"""On a real Ray cluster of this machine: two actors, one of which is killed in the middle."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from batch_jobs import MODEL, labelled, rows, write_jsonl

ray = pytest.importorskip("ray", reason="Ray is an extra")

import jaxpool.ray  # noqa: E402 - after the check above
from jaxpool import LLM  # noqa: E402
from jaxpool.batch.job import Settings  # noqa: E402
from jaxpool.batch.local import plan  # noqa: E402
from jaxpool.commands.main import main  # noqa: E402

ROOT = Path(__file__).parents[3]
# Ray's own files and processes end with it, not with a test; and it warns of its own future
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    environment = {"env_vars": {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}}
    environment["env_vars"]["PYTHONPATH"] = os.pathsep.join(str(ROOT / one) for one in ("", "conversions", "serving"))
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    ray.init(
        num_cpus=3,
        include_dashboard=False,
        object_store_memory=100 << 20,
        runtime_env=environment,
        log_to_driver=False,
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield
    ray.shutdown()


def test_a_dataset(cluster: None) -> None:
    records: list[dict[str, object]] = [*rows(60), {"id": 60, "text": "word " * 600}, {"id": 61, "text": " "}]
    dataset = ray.data.from_items(records, override_num_blocks=2)
    found = jaxpool.ray.classify(dataset, model=MODEL, cpus=1, batch_size=16, prefix="my_").take_all()
    found.sort(key=lambda row: row["id"])
    assert [row["id"] for row in found] == list(range(62))
    with LLM(MODEL) as llm:
        wanted = llm.classify([row["text"] for row in records[:60]], use_tqdm=False)
    for row, output in zip(found, wanted):
        assert (row["my_label"], row["my_error"]) == (output.outputs.label, None)
        assert list(row["my_probs"].values()) == pytest.approx(output.outputs.probs, abs=1e-6)
    assert found[60]["my_label"] is None
    assert "maximum context length" in found[60]["my_error"]
    assert (found[61]["my_label"] in llm.labels, found[61]["my_error"]) == (True, None)


def test_units_survive_the_death_of_a_worker(cluster: None, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", rows(1000, most=30))
    settings = Settings(model=MODEL, output_format="jsonl", unit_bytes=2000)
    planned = plan([source], tmp_path / "out", settings)
    planned.open()
    assert len(planned.units) > 20
    killed: list[int] = []

    def kill_one(_progress: object) -> None:
        if not killed:
            victims = workers()
            assert len(victims) == 2
            killed.append(victims[0])
            os.kill(victims[0], signal.SIGKILL)

    summary = jaxpool.ray.work(planned, actors=2, cpus=1, report=kill_one)
    assert killed, "nobody was killed"
    assert summary.manifest is not None
    assert summary.manifest["rows"] == 1000
    found = labelled(tmp_path / "out")
    assert [row["id"] for row in found] == list(range(1000))
    with LLM(MODEL) as llm:
        wanted = llm.classify([row["text"] for row in found], use_tqdm=False)
    assert [row["label"] for row in found] == [output.outputs.label for output in wanted]
    # the command does the same, and what is done stays done
    lost = sorted((tmp_path / "out" / "receipts").iterdir())[:2]
    kept = (tmp_path / "out" / "parts" / "part-000005.jsonl").stat().st_mtime_ns
    for path in lost:
        path.unlink()
    words = ["batch", str(source), "--output", str(tmp_path / "out"), "--model", MODEL, "--quiet"]
    assert main([*words, "--unit-mb", str(2000 / 2**20), "--ray", "auto"]) == 0
    assert all(path.exists() for path in lost)
    assert (tmp_path / "out" / "parts" / "part-000005.jsonl").stat().st_mtime_ns == kept


def workers() -> list[int]:
    """Processes of this test's actors that hold a model now."""
    limit = time.monotonic() + 60
    while time.monotonic() < limit:
        own = [child for child in psutil.Process().children(recursive=True) if child.name().startswith("ray::Map")]
        if len(own) == 2:
            return [child.pid for child in own]
        time.sleep(0.2)
    return []


def test_serve_with_two_replicas(cluster: None) -> None:
    from ray import serve

    from jaxpool_serving.ray_serve import deployment

    arguments = {"model": MODEL, "max_model_len": 16, "max_num_batched_tokens": 64}
    app = deployment({"bert": arguments}, num_replicas=2, ray_actor_options={"num_cpus": 1})
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        serve.run(app, name="jaxpool", route_prefix="/")
        texts = ["good film", "bad"]
        url = f"http://127.0.0.1:{port}"
        answers = [post(f"{url}/classify", {"input": texts}) for _ in range(8)]
        status, refused = post(f"{url}/classify", {"input": []})
        assert (status, "error" in refused) == (400, True)
        assert serve.status().applications["jaxpool"].deployments["jaxpool"].replica_states == {"RUNNING": 2}
    finally:
        serve.shutdown()
    with LLM(**arguments) as llm:
        wanted = [output.outputs.probs for output in llm.classify(texts, use_tqdm=False)]
    for status, answer in answers:
        assert status == 200
        assert [entry["probs"] for entry in answer["data"]] == [pytest.approx(one, abs=1e-5) for one in wanted]


def post(url: str, body: object) -> tuple[int, dict]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)
