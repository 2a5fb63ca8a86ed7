"""Nothing is read back that somebody else could have written, or that is not what was written."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from jaxpool.checkpoints import user_cache
from jaxpool.checkpoints.user_cache import private_folder

MODELS = Path(__file__).parents[2] / "data" / "models"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("JAXPOOL_CACHE_DIR", str(tmp_path / "a" / "b"))
    return tmp_path


def test_folders_are_made_for_this_user_alone(home: Path) -> None:
    umask = os.umask(0)
    try:
        folder = private_folder("c")
    finally:
        os.umask(umask)
    assert folder is not None
    assert folder.path == home / "a" / "b" / "c"
    assert [(home / name).stat().st_mode & 0o777 for name in ("a", "a/b", "a/b/c")] == [0o700] * 3


@pytest.mark.parametrize("name", ["a", "a/b", "a/b/c"])
@pytest.mark.parametrize("mode", [0o777, 0o772, 0o1777])
def test_every_folder_of_the_path_counts(
    name: str, mode: int, home: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "a" / "b" / "c").mkdir(parents=True)
    (home / name).chmod(mode)
    sticky_parent = mode == 0o1777 and name != "a/b/c"  # nobody can rename what is ours in it
    assert (private_folder("c") is not None) == sticky_parent
    assert sticky_parent or f"others may write to {home / name};" in caplog.text


def test_a_group_counts_unless_it_is_the_users_own(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "a" / "b" / "c").mkdir(parents=True)
    (home / "a").chmod(0o770)
    for ours in (True, False):
        monkeypatch.setattr(user_cache, "_is_ours_alone", lambda _, ours=ours: ours)
        assert (private_folder("c") is not None) == ours
    monkeypatch.setattr(user_cache, "_is_ours_alone", lambda _: True)
    (home / "a" / "b" / "c").chmod(0o770)
    assert private_folder("c") is None


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("name", ["a", "a/b", "a/b/c"])
def test_a_folder_of_somebody_else_is_not_used(name: str, home: Path) -> None:
    (home / "a" / "b" / "c").mkdir(parents=True)
    os.chown(home / name, 12345, 12345)
    assert private_folder("c") is None


def test_links_lead_on_if_what_they_pass_is_ours(home: Path) -> None:
    (home / "far" / "shared").mkdir(parents=True)
    (home / "a").symlink_to("far/../far/shared")
    folder = private_folder("c")
    assert folder is not None
    folder.write("x", b"1")
    assert (home / "far" / "shared" / "b" / "c" / "x").is_file()
    (home / "far").chmod(0o777)
    assert private_folder("c") is None
    (home / "far").chmod(0o755)
    (home / "a").unlink()
    (home / "a").symlink_to(home / "far")
    assert private_folder("c") is not None
    (home / "a").unlink()
    (home / "a").symlink_to("a")
    assert private_folder("c") is None


def test_a_later_rename_changes_nothing(home: Path) -> None:
    folder = private_folder("c")
    assert folder is not None
    folder.write("x", b"mine")
    (home / "a").rename(home / "moved")
    (home / "a" / "b" / "c").mkdir(parents=True)
    (home / "a" / "b" / "c" / "x").write_bytes(b"theirs")
    assert folder.read("x") == b"mine"
    folder.write("y", b"more")
    assert (home / "moved" / "b" / "c" / "y").is_file()


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _to_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _to_link(path: Path) -> None:
    path.rename(path.parent / "elsewhere")
    path.symlink_to("elsewhere")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "flipped": _flip,
    "noise": lambda path: path.write_bytes(os.urandom(5000)),
    "folder": _to_folder,
    "link": _to_link,
    "open to all": lambda path: path.chmod(0o666),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_not_as_it_was_written_is_nothing(damage: str, home: Path) -> None:
    folder = private_folder("c")
    assert folder is not None
    assert folder.read("x") is None
    folder.write("x", b"content\n" * 100)
    assert folder.read("x") == b"content\n" * 100
    DAMAGES[damage](folder.path / "x")
    assert folder.read("x") is None
    folder.write("x", b"again")
    assert folder.read("x") == (None if damage == "folder" else b"again")
    assert not [path for path in folder.path.iterdir() if path.name.startswith(".")]


def test_programs_are_remade_where_they_are_damaged(tmp_path: Path) -> None:
    """The real start, over a program and a config of which one bit each is another one."""
    code = (
        "import sys; from jaxpool import LLM;"
        "llm = LLM(sys.argv[1], max_model_len=16, max_num_batched_tokens=16, compile='ahead');"
        "print(llm.classify('good', use_tqdm=False)[0].outputs.probs)"
    )
    environment = os.environ | {"JAXPOOL_CACHE_DIR": str(tmp_path / "mine")}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)

    def start() -> tuple[str, dict[str, bytes]]:
        command = [sys.executable, "-W", "error::UserWarning:jax", "-c", code, str(MODELS / "bert-cls")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        kept = [path for name in ("xla", "checkpoints") for path in (tmp_path / "mine" / name).iterdir()]
        return done.stdout, {path.name: path.read_bytes() for path in kept if path.is_file()}

    first, before = start()
    assert len(before) >= 2
    for name in before:
        [path] = (tmp_path / "mine").glob(f"*/{name}")
        _flip(path)
    again, after = start()
    assert again == first
    assert after.keys() == before.keys()
    for name, content in after.items():
        digest, _, payload = content.partition(b"\n")
        assert digest.decode() == user_cache.DIGEST(payload).hexdigest(), name
