"""Slots of adapters under any sequence of loading, dropping and holding: every text gets its own adapter's answer."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import peft_files
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from jaxpool import LLM, LoRARequest
from jaxpool.engine.adapters import Loaded
from jaxpool.engine.buckets import Bucket
from jaxpool.engine.engine import Row
from jaxpool.errors import ValidationError
from jaxpool_conversions.peft_folder import PeftAdapter

BASE = Path(__file__).parents[2] / "data" / "models" / "bert-cls"
NAMES = ("a", "b", "c", "d")
SHAPE = Bucket(4, 16)
SLOTS = 3


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    room = {"enable_lora": True, "max_loras": SLOTS, "max_lora_rank": 8, "max_lora_cls_labels": 5}
    with LLM(str(BASE), skip_tokenizer_init=True, dtype="float32", **room) as llm:
        yield llm


def answers(llm: LLM, adapters: list[Loaded | None]) -> list[np.ndarray]:
    rows = [Row([5, 6, 7], None, False, adapter=adapter) for adapter in adapters]
    return [llm.engine.submit([row], SHAPE).result()[0] for row in rows]


def test_any_sequence_of_loading_and_dropping(llm: LLM, tmp_path: Path) -> None:
    paths = {name: str(peft_files.of_bert(tmp_path / name, BASE, seed, seed + 1)) for seed, name in enumerate(NAMES, 1)}
    adapters, expected = llm.engine.adapters, {}
    for name, path in paths.items():
        expected[name] = answers(llm, [adapters.add(name, path)])[0]
        adapters.drop(name)
    assert len({answer.tobytes() for answer in expected.values()}) == len(NAMES)

    class Slots(RuleBasedStateMachine):
        """What a server does, and texts that hold an adapter for longer than the server does."""

        def __init__(self) -> None:
            super().__init__()
            self.served: set[str] = set()
            self.waiting: list[tuple[str, Loaded]] = []

        def gone(self) -> int:
            """Slots that only waiting texts hold."""
            return len({loaded.slot for _, loaded in self.waiting} - {one.slot for one in adapters.held().values()})

        @rule(name=st.sampled_from(NAMES))
        def load(self, name: str) -> None:
            if name in self.served or len(self.served) >= SLOTS:
                with pytest.raises(ValidationError, match=r"already been loaded|There is room for"):
                    adapters.add(name, paths[name])
            elif len(self.served) + self.gone() < SLOTS:  # else it would wait for them
                adapters.add(name, paths[name])
                self.served.add(name)

        @rule(name=st.sampled_from(NAMES))
        def drop(self, name: str) -> None:
            assert adapters.drop(name) == (name in self.served)
            self.served.discard(name)

        @rule(name=st.sampled_from(NAMES))
        def wait(self, name: str) -> None:
            if name in self.served:
                self.waiting.append((name, adapters.held()[name]))

        @rule()
        def compute(self) -> None:
            while self.waiting:
                name, loaded = self.waiting.pop()
                np.testing.assert_allclose(answers(llm, [loaded])[0], expected[name], atol=1e-6)

        @invariant()
        def every_slot_is_one_adapters(self) -> None:
            held = adapters.held()
            assert held.keys() == self.served
            slots = {id(one): one.slot for one in (*held.values(), *(loaded for _, loaded in self.waiting))}
            assert len(set(slots.values())) == len(slots)
            assert set(slots.values()) <= set(range(1, SLOTS + 1))

        def teardown(self) -> None:
            self.compute()
            for name in NAMES:
                adapters.drop(name)

    run_state_machine_as_test(
        Slots,
        settings=settings(max_examples=15, stateful_step_count=20, deadline=None, suppress_health_check=[*HealthCheck]),
    )
    assert sorted(adapters._free) == [1, 2, 3], "every slot is free again"


def test_who_asks_what_is_loaded_waits_for_no_load(llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An event loop asks at every request, and reading an adapter may be a download."""
    adapters, path = llm.engine.adapters, str(peft_files.of_bert(tmp_path / "a", BASE, 1, 2))
    first, reading, go_on = adapters.add("a", path), threading.Event(), threading.Event()
    read = adapters._opened

    def slowly(path: str) -> PeftAdapter:
        reading.set()
        assert go_on.wait(60)
        return read(path)

    monkeypatch.setattr(adapters, "_opened", slowly)
    with ThreadPoolExecutor(2) as pool:
        try:
            added = pool.submit(adapters.add, "a", path, replace=True)
            assert reading.wait(60)
            assert pool.submit(adapters.held).result(timeout=60) == {"a": first}
        finally:
            go_on.set()
        assert added.result(timeout=60) is adapters.held()["a"]
    adapters.drop("a")


def test_offline_the_adapter_unused_for_longest_makes_room(llm: LLM, tmp_path: Path) -> None:
    requests = [
        LoRARequest(name, number, str(peft_files.of_bert(tmp_path / name, BASE, number, 2)))
        for number, name in enumerate(NAMES, 1)
    ]
    ids = [[5, 6, 7], [8, 9]]
    alone = [llm.classify(ids, lora_request=request, use_tqdm=False) for request in requests]
    assert set(llm.engine.adapters.held()) == {"b", "c", "d"}
    mixed = llm.classify(ids * 2, lora_request=[requests[3], None, requests[0], requests[3]], use_tqdm=False)
    assert set(llm.engine.adapters.held()) == {"c", "d", "a"}
    np.testing.assert_allclose(mixed[0].outputs.probs, alone[3][0].outputs.probs, atol=1e-6)
    np.testing.assert_allclose(mixed[2].outputs.probs, alone[0][0].outputs.probs, atol=1e-6)
    assert [len(one.outputs.probs) for one in mixed] == [2, 3, 2, 2]
    with pytest.raises(ValidationError, match="4 adapters, and there is room for 3"):
        llm.classify(ids * 2, lora_request=requests, use_tqdm=False)
    with pytest.raises(ValidationError, match="The lengths of prompts"):
        llm.classify(ids, lora_request=requests[:1], use_tqdm=False)
    with pytest.raises(ValidationError, match="The id 4 is that of the adapter 'd'"):
        llm.classify(ids, lora_request=LoRARequest("x", 4, requests[0].lora_path), use_tqdm=False)
    for name in NAMES:
        llm.engine.adapters.drop(name)


def test_what_does_not_fit_leaves_everything_as_it_was(llm: LLM, tmp_path: Path) -> None:
    good = peft_files.of_bert(tmp_path / "good", BASE, 1, 2)
    before = answers(llm, [llm.engine.adapters.add("good", str(good)), None])
    too_many = peft_files.of_bert(tmp_path / "many", BASE, 2, 6)
    with pytest.raises(ValidationError, match="raise max_lora_cls_labels"):
        llm.engine.adapters.add("good", str(too_many), replace=True)
    after = answers(llm, [llm.engine.adapters.held()["good"], None])
    np.testing.assert_array_equal(before[0], after[0])
    np.testing.assert_array_equal(before[1], after[1])
    llm.engine.adapters.drop("good")
