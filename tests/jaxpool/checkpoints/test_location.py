"""Where checkpoints are found and what their config says; every failure is one sentence about what to do."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from jaxpool.checkpoints import location
from jaxpool.checkpoints.location import locate, read_config
from jaxpool.errors import CheckpointError, ConfigError
from jaxpool.text.vocabulary import Vocabulary, read_tokenizer

MODELS = Path(__file__).parents[2] / "data" / "models"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def write(folder: Path, data: Any) -> Path:
    folder.mkdir(exist_ok=True)
    text = data if isinstance(data, str) else json.dumps(data)
    (folder / "config.json").write_text(text, encoding="utf-8")
    return folder


def cached(cache: Path, repo: str, *files: str, revision: str = "main") -> Path:
    """A hub cache that holds ``files`` of ``repo``, as a download would have left it."""
    root = cache / f"models--{repo.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / revision).write_text(COMMIT)
    folder = root / "snapshots" / COMMIT
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    return folder


def test_a_folder_is_used_as_it_is():
    assert locate(MODELS / "bert-cls") == MODELS / "bert-cls"
    assert locate(str(MODELS / "bert-cls")) == MODELS / "bert-cls"


def test_none_is_the_embedded_model(monkeypatch, tmp_path):
    monkeypatch.setattr(location, "DEFAULT_MODEL", tmp_path)
    with pytest.raises(CheckpointError, match="embedded model is missing"):
        locate(None)
    write(tmp_path, {})
    assert locate(None) == tmp_path


def test_a_cached_hub_id_needs_no_network(tmp_path):
    folder = cached(tmp_path, "org/name", "config.json", "model.safetensors")
    assert locate("org/name", cache_dir=tmp_path) == folder


def test_the_revision_is_honoured(tmp_path):
    folder = cached(tmp_path, "org/name", "config.json", "model.safetensors", revision="v2")
    assert locate("org/name", cache_dir=tmp_path, revision="v2") == folder
    with pytest.raises(CheckpointError, match="the hub model at revision v3 is not in the local cache"):
        locate("org/name", cache_dir=tmp_path, revision="v3")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("org/absent", "There is no folder org/absent, the hub model is not in the local cache"),
        ("./absent", "There is no folder ./absent"),
        ("/absent/model", "There is no folder /absent/model"),
        ("a/b/c", "There is no folder a/b/c"),
        ("bad name!", "'bad name!' is neither a folder nor a hub id"),
    ],
)
def test_models_that_are_nowhere(model, message, tmp_path):
    with pytest.raises(CheckpointError) as caught:
        locate(model, cache_dir=tmp_path)
    assert message in str(caught.value)


def test_folders_and_files_that_are_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        locate(tmp_path)
    assert locate(tmp_path, weights=False) == tmp_path
    file = write(tmp_path, {}) / "config.json"
    with pytest.raises(CheckpointError, match="is a file; give the checkpoint folder"):
        locate(file)


class Hub(BaseHTTPRequestHandler):
    """The hub's side of a download, as far as its client asks; ids say what goes wrong."""

    repo = ("config.json", "tokenizer.json", "merges.txt", "chat_template.jinja", "pytorch_model.bin")
    repo += ("model.safetensors", "onnx/model.onnx", "tf_model.h5", "training_args.bin", "sub/model.safetensors")
    dense = ("modules.json", "2_Dense/config.json", "2_Dense/model.safetensors")
    modules = b'[{"type": "x.Dense", "path": "2_Dense"}]'
    below = ("modules.json", "0_Transformer/config.json", "0_Transformer/pytorch_model.bin", "0_Transformer/bpe.codes")
    old_modules = b'[{"type": "x.Transformer", "path": "0_Transformer"}]'
    refusals: ClassVar = {"gated": (403, "GatedRepo"), "absent": (404, "RepoNotFound"), "broken": (500, "Oops")}

    def do_GET(self) -> None:
        if "org/" not in self.path:
            return self.answer(404, b"no", {})
        name = self.path.split("org/")[1].split("/")[0]
        if "/revision/v9" in self.path:
            return self.answer(404, b"no", {"X-Error-Code": "RevisionNotFound"})
        if name in self.refusals:
            status, code = self.refusals[name]
            return self.answer(status, b"no", {"X-Error-Code": code})
        if self.path.startswith("/api/models/"):
            files = [file for file in self.repo if name != "torch" or file != "model.safetensors"]
            files += self.dense if name == "dense" else ()
            files = list(self.below) if name == "old" else files
            info: Any = {"id": f"org/{name}", "sha": COMMIT, "siblings": [{"rfilename": file} for file in files]}
            if "/tree/" in self.path:  # what newer clients ask next
                info = [{"type": "file", "path": file, "size": 2, "oid": "e"} for file in files]
            return self.answer(200, json.dumps(info).encode(), {"Content-Type": "application/json"})
        modules = self.old_modules if name == "old" else self.modules
        body, tag = (modules, f'"m{len(modules)}"') if self.path.endswith("modules.json") else (b"{}", '"e"')
        return self.answer(200, body, {"ETag": tag, "X-Repo-Commit": COMMIT})

    do_HEAD = do_GET

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_args: object) -> None:
        pass


LOCATE = """
import json, sys
from jaxpool.checkpoints.location import locate
from jaxpool.errors import CheckpointError
for model, options in json.loads(sys.argv[1]):
    try:
        folder = locate(model, cache_dir=sys.argv[2], **options)
        print(json.dumps(sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())))
    except CheckpointError as error:
        print(json.dumps(str(error)))
"""


def test_the_hub(tmp_path):
    """Weights of other frameworks never; ``.bin`` only without safetensors; Dense modules; refusals in words."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    calls: list[tuple[str, dict[str, Any]]] = [
        ("org/name", {"weights": False}),
        ("org/name", {}),
        ("org/torch", {}),
        ("org/dense", {}),
        ("org/old", {}),
        ("org/gated", {}),
        ("org/absent", {}),
        ("org/name", {"revision": "v9"}),
        ("org/broken", {}),
    ]
    try:
        result = subprocess.run(
            [sys.executable, "-c", LOCATE, json.dumps(calls), str(tmp_path)],
            env={**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}"},
            capture_output=True,
            text=True,
            check=True,
        )
    finally:
        server.shutdown()
        server.server_close()
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    small = ["chat_template.jinja", "config.json", "merges.txt", "tokenizer.json"]
    assert answers[:5] == [
        small,
        sorted([*small, "model.safetensors"]),
        sorted([*small, "pytorch_model.bin"]),
        sorted([*small, "model.safetensors", *Hub.dense]),
        ["bpe.codes", "config.json", "pytorch_model.bin"],
    ]
    for answer, words in zip(
        answers[5:],
        (
            "The model org/gated is gated: accept its terms",
            "There is no folder and no hub model org/absent",
            "The hub model org/name has no revision v9",
            "org/broken",
        ),
    ):
        assert words in answer


def test_class_defaults_apply():
    config = read_config(MODELS / "bert-cls")
    assert config.hidden_act == "gelu"
    assert config.chunk_size_feed_forward == 0  # not in the file
    assert config.id2label == {0: "negative", 1: "neutral", 2: "positive"}
    assert config.num_labels == 3


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("{bad", "is not valid JSON"),
        ("[1]", "should hold a JSON object, got list"),
        ({}, "config.json has no `model_type`"),
        ({"model_type": "no-such"}, "model_type 'no-such' is not known to transformers"),
        ({"model_type": "no-such", "auto_map": {}}, "its own code is never run"),
        ({"model_type": "bert", "hidden_size": "big"}, "BertConfig refuses"),
        ({"model_type": "bert", "num_labels": 3, "id2label": {"0": "a", "1": "b"}}, "num_labels is 3 but id2label"),
        ({"model_type": "bert", "id2label": {"x": "a"}}, "id2label must map 0, 1, 2"),
        ({"model_type": "bert", "id2label": {"1": "a", "2": "b"}}, "id2label must map 0, 1, 2"),
        ({"model_type": "bert", "id2label": ["a"]}, "id2label must map 0, 1, 2"),
    ],
)
def test_bad_configs(data, message, tmp_path):
    with pytest.raises(ConfigError) as caught:
        read_config(write(tmp_path, data))
    assert message in str(caught.value)


def test_undecodable_and_absent_configs(tmp_path):
    with pytest.raises(ConfigError, match=r"There is no config\.json"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(ConfigError, match="is not valid JSON"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("overrides", "labels"),
    [
        ({"num_labels": 2}, ["LABEL_0", "LABEL_1"]),
        ({"id2label": {"1": "no", "0": "yes"}}, ["yes", "no"]),
        ({"id2label": {0: "a"}, "num_labels": 1}, ["a"]),
        ({"head_dtype": "model"}, ["negative", "neutral", "positive"]),
    ],
)
def test_overrides_replace_labels_as_a_whole(overrides, labels):
    config = read_config(MODELS / "bert-cls", overrides)
    assert list(config.id2label.values()) == labels
    assert config.num_labels == len(labels)
    assert getattr(config, "head_dtype", None) == overrides.get("head_dtype")


def test_overrides_that_contradict_themselves():
    with pytest.raises(ConfigError, match="num_labels is 3 but id2label names 1"):
        read_config(MODELS / "bert-cls", {"num_labels": 3, "id2label": {"0": "a"}})


def test_unknown_names_are_kept_for_whoever_reads_them():
    config = read_config(MODELS / "llama-causal", {"classifier_from_token": ["no", "yes"], "method": "x"})
    assert (config.classifier_from_token, config.method) == (["no", "yes"], "x")


def test_nested_overrides_are_merged_into_the_sub_config(tmp_path):
    text = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 3}
    folder = write(tmp_path, {"model_type": "gemma3", "text_config": text})
    config = read_config(folder, {"text_config": {"num_hidden_layers": 1}})
    assert (config.text_config.hidden_size, config.text_config.num_hidden_layers) == (32, 1)


def test_a_callable_gets_the_config():
    def change(config: Any) -> Any:
        config.id2label = {"0": "only"}
        return config

    assert read_config(MODELS / "bert-cls", change).id2label == {0: "only"}
    with pytest.raises(ConfigError, match="callable must return the configuration, got NoneType"):
        read_config(MODELS / "bert-cls", lambda config: None)


def test_foreign_code_is_never_run(tmp_path, caplog):
    data = json.loads((MODELS / "bert-cls" / "config.json").read_text())
    (write(tmp_path, {**data, "auto_map": {"AutoConfig": "evil.Config"}}) / "evil.py").write_text("1 / 0")
    with caplog.at_level(logging.WARNING, "jaxpool"):
        assert type(read_config(tmp_path, trust_remote_code=True)).__name__ == "BertConfig"
    assert "never runs code" in caplog.text


def test_the_names_of_the_package_are_lazy_and_complete():
    code = (
        "import sys; before = set(sys.modules); import jaxpool; brought = set(sys.modules) - before;"
        "heavy = {'jax', 'flax', 'transformers', 'torch', 'numpy', 'huggingface_hub'} & set(sys.modules);"
        "assert not heavy, heavy; assert len(brought) < 100, brought;"
        "assert set(jaxpool.__all__) <= set(dir(jaxpool));"
        "missing = [name for name in jaxpool.__all__ if not hasattr(jaxpool, name)]; assert not missing, missing;"
        "assert jaxpool.PoolingParams.__module__ == 'jaxpool.params'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    import jaxpool

    with pytest.raises(AttributeError, match="module 'jaxpool' has no attribute 'nothing'"):
        jaxpool.nothing  # noqa: B018


@pytest.mark.parametrize("name", ["num_attention_heads", "hidden_size", "vocab_size"])
@pytest.mark.parametrize("value", [0, -2])
def test_sizes_that_are_none(tmp_path, name, value):
    folder = write(tmp_path / "m", {"model_type": "bert", name: value})
    with pytest.raises(ConfigError, match=f"{name} {value}; it must be at least 1"):
        read_config(folder)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"model_type": "bert", "x": ' + "[" * 100_000 + "]" * 100_000 + "}"])
def test_a_config_of_thousands_of_brackets(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match="nested too deeply"):
        read_config(tmp_path)


def test_a_limit_of_the_tokenizer_that_is_no_number(tmp_path):
    folder = shutil.copytree(Path(__file__).parents[2] / "data" / "models" / "bert-cls", tmp_path / "m")
    settings = json.loads((folder / "tokenizer_config.json").read_text()) | {"model_max_length": "many"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match="model_max_length 'many'"):
        Vocabulary.of(read_tokenizer(folder))
