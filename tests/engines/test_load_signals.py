"""One value of each load signal, for engines with every kind of ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamometer.engines.load_signals import EngineLoad
from dynamometer.exposition.families import Family
from parsing import parse

CONSTANT = {"dynamo_component": "backend", "dynamo_namespace": "dynamo", "model": "m"}
WORKERS = "dynamo_component_"
RANK = 'tp_rank="0",pp_rank="0",moe_ep_rank="0"'


def page(*lines: str) -> tuple[Family, ...]:
    """Return families of lines such as `num_running_reqs{tp_rank="0"} 1`, without `sglang:`."""
    text = ""
    for name in dict.fromkeys(line.partition("{")[0] for line in lines):
        kind = "counter" if name.endswith("_total") else "gauge"
        text += f"# TYPE sglang:{name} {kind}\n"
        text += "".join(f"sglang:{line}\n" for line in lines if line.partition("{")[0] == name)
    return parse(text.encode())


def shown(families: Sequence[Family]) -> dict[str, float]:
    """Return the values by the short name, with the rank if a family has one."""
    found = {}
    for family in families:
        for sample in family.samples:
            name = sample.series.name.removeprefix("dynamometer_engine_").removeprefix(WORKERS)
            rank = sample.series.labels.get("dp_rank")
            found[name if rank is None else f"{name}/{rank}"] = float(sample.value)
    return found


def load(*lines: str, component: bool = False) -> dict[str, float]:
    return shown(EngineLoad("sglang", lambda: CONSTANT, component=component).families(page(*lines)))


@dataclass(frozen=True)
class Shape:
    """The lines of an engine and the signals derived from them; None for a missing signal."""

    lines: Sequence[str]
    running: float | None = None
    queued: float | None = None
    usage: float | None = None
    generated: float = 0
    prompt: float = 0
    cached: float = 0
    blocks: Mapping[str, float] = field(default_factory=dict)

    def expected(self) -> dict[str, float]:
        all_values = {
            "running_requests": self.running,
            "queued_requests": self.queued,
            "kv_usage_ratio": self.usage,
            "generation_tokens_total": self.generated,
            "prompt_tokens_total": self.prompt,
            "cached_prompt_tokens_total": self.cached,
        }
        return {name: value for name, value in all_values.items() if value is not None}


SHAPES = {
    "one rank": Shape(
        [
            f"num_running_reqs{{{RANK}}} 3",
            f"num_queue_reqs{{{RANK}}} 2",
            f"num_grammar_queue_reqs{{{RANK}}} 1",
            f"token_usage{{{RANK}}} 0.25",
            'generation_tokens_total{is_streaming="true"} 40',
            'generation_tokens_total{is_streaming="false"} 2',
            'prompt_tokens_total{is_streaming="true"} 60',
            'prompt_tokens_total{is_streaming="false"} 10',
            'cached_tokens_total{cache_source="device"} 20',
            'cached_tokens_total{cache_source="host"} 5',
            f"num_pages{{{RANK}}} 8192",
        ],
        running=3, queued=3, usage=0.25, generated=42, prompt=70, cached=25, blocks={"0": 8192},
    ),
    "two tensor ranks, the later one first": Shape(
        [
            'num_running_reqs{tp_rank="10"} 7',
            'num_running_reqs{tp_rank="9"} 3',
            'num_queue_reqs{tp_rank="10"} 7',
            'num_queue_reqs{tp_rank="9"} 2',
            'token_usage{tp_rank="10"} 0.9',
            'token_usage{tp_rank="9"} 0.5',
            'num_pages{tp_rank="10"} 4',
            'num_pages{tp_rank="9"} 5',
        ],
        running=3, queued=2, usage=0.5, blocks={"0": 5},
    ),
    "two data-parallel ranks": Shape(
        [
            'num_running_reqs{dp_rank="0",tp_rank="0"} 3',
            'num_running_reqs{dp_rank="1",tp_rank="0"} 4',
            'num_queue_reqs{dp_rank="0",tp_rank="0"} 1',
            'num_queue_reqs{dp_rank="1",tp_rank="0"} 0',
            'token_usage{dp_rank="0",tp_rank="0"} 0.5',
            'token_usage{dp_rank="1",tp_rank="0"} 0.25',
            'max_total_num_tokens{dp_rank="0",tp_rank="0"} 100',
            'max_total_num_tokens{dp_rank="1",tp_rank="0"} 64',
            'page_size{dp_rank="0",tp_rank="0"} 16',
            'page_size{dp_rank="1",tp_rank="0"} 16',
        ],
        running=7, queued=1, usage=0.375, blocks={"0": 6, "1": 4},
    ),
    "data-parallel attention over four tensor ranks, all of which write": Shape(
        [
            'num_running_reqs{dp_rank="0",tp_rank="0"} 3',
            'num_running_reqs{dp_rank="0",tp_rank="1"} 3',
            'num_running_reqs{dp_rank="1",tp_rank="2"} 5',
            'num_running_reqs{dp_rank="1",tp_rank="3"} 5',
            'token_usage{dp_rank="0",tp_rank="0"} 0.5',
            'token_usage{dp_rank="0",tp_rank="1"} 0.5',
            'token_usage{dp_rank="1",tp_rank="2"} 1.0',
            'cached_tokens_total{dp_rank="0",tp_rank="0"} 3',
            'cached_tokens_total{dp_rank="0",tp_rank="1"} 3',
            'cached_tokens_total{dp_rank="1",tp_rank="2"} 5',
            'prompt_tokens_total{dp_rank="0",tp_rank="0"} 6',
            'prompt_tokens_total{dp_rank="0",tp_rank="1"} 6',
        ],
        running=8, usage=0.75, prompt=6, cached=8,
    ),
    "two pipeline ranks and a context rank": Shape(
        [
            'num_running_reqs{attn_cp_rank="0",pp_rank="0"} 3',
            'num_running_reqs{attn_cp_rank="1",pp_rank="0"} 3',
            'num_running_reqs{attn_cp_rank="0",pp_rank="1"} 2',
        ],
        running=3,
    ),
    "priorities": Shape(
        [
            'num_running_reqs{priority="",tp_rank="0"} 6',
            'num_running_reqs{priority="1",tp_rank="0"} 4',
            'num_running_reqs{priority="2",tp_rank="0"} 2',
            'num_queue_reqs{priority="1",tp_rank="0"} 2',
            'num_queue_reqs{priority="None",tp_rank="0"} 3',
            # In a counter, an empty priority stands for the requests without a priority.
            'generation_tokens_total{is_streaming="true",priority=""} 10',
            'generation_tokens_total{is_streaming="true",priority="1"} 5',
            'cached_tokens_total{cache_source="device",priority=""} 3',
            'cached_tokens_total{cache_source="device",priority="1"} 4',
            'cached_tokens_total{cache_source="total",priority="1"} 1',
        ],
        running=6, queued=5, generated=15, cached=8,
    ),
    "a prefill engine": Shape(
        [
            "num_running_reqs{} 1",
            "num_queue_reqs{} 2",
            "num_prefill_bootstrap_queue_reqs{} 3",
            "num_prefill_inflight_queue_reqs{} 4",
        ],
        running=1, queued=9,
    ),
    "a decode engine, whose transfer queue has what the host receives": Shape(
        [
            "num_running_reqs{} 1",
            "num_queue_reqs{} 2",
            "num_decode_prealloc_queue_reqs{} 3",
            "num_decode_transfer_queue_reqs{} 4",
            "num_decode_host_receive_queue_reqs{} 4",
        ],
        running=1, queued=9,
    ),
    "a prefill engine, which counts one token of each answer, too": Shape(
        (
            'num_running_reqs{engine_type="prefill"} 0',
            'generation_tokens_total{engine_type="prefill"} 5',
            'prompt_tokens_total{engine_type="prefill"} 70',
            'cached_tokens_total{engine_type="prefill",cache_source="device"} 30',
        ),
        running=0,
        prompt=70,
        cached=30,
    ),
    "a decode engine, which counts the prompts, too": Shape(
        (
            'num_running_reqs{engine_type="decode"} 0',
            'generation_tokens_total{engine_type="decode"} 90',
            'prompt_tokens_total{engine_type="decode"} 70',
            'cached_tokens_total{engine_type="decode",cache_source="device"} 30',
        ),
        running=0,
        generated=90,
    ),
    "a prefill engine, whose last batch is in the in-flight queue, but for one chunk": Shape(
        [
            'num_running_reqs{engine_type="prefill"} 3',
            'num_queue_reqs{engine_type="prefill"} 1',
            'num_prefill_bootstrap_queue_reqs{engine_type="prefill"} 5',
            'num_prefill_inflight_queue_reqs{engine_type="prefill"} 2',
        ],
        running=1, queued=8,
    ),
    "a prefill engine with two data-parallel ranks": Shape(
        [
            'num_running_reqs{dp_rank="0",engine_type="prefill"} 3',
            'num_running_reqs{dp_rank="1",engine_type="prefill"} 1',
            'num_prefill_inflight_queue_reqs{dp_rank="0",engine_type="prefill"} 4',
            'num_prefill_inflight_queue_reqs{dp_rank="1",engine_type="prefill"} 0',
        ],
        running=1, queued=4,
    ),
    "a decode engine": Shape(
        [
            'num_running_reqs{engine_type="decode"} 3',
            'num_decode_transfer_queue_reqs{engine_type="decode"} 4',
        ],
        running=3, queued=4,
    ),
    "an engine that changes its role": Shape(
        [
            'num_running_reqs{engine_type="dynamic"} 3',
            'num_prefill_inflight_queue_reqs{engine_type="dynamic"} 4',
        ],
        running=3, queued=4,
    ),
    "nothing written yet but a constant": Shape(
        ["max_total_num_tokens{} 8192", "page_size{} 1"], blocks={"0": 8192}
    ),
    "nonsense beside what is right": Shape(
        [
            'num_running_reqs{dp_rank="0"} NaN',
            'num_running_reqs{dp_rank="1"} 2',
            'num_running_reqs{dp_rank="2"} -4',
            'token_usage{dp_rank="1"} +Inf',
            'generation_tokens_total{x="}, \\" 1"} 5 1700000000000',
            "page_size{} 0",
            "max_total_num_tokens{} 5",
        ],
        running=2, generated=5,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_an_engine_has_one_value_of_each_signal(name: str) -> None:
    assert load(*SHAPES[name].lines) == SHAPES[name].expected()


@pytest.mark.parametrize("name", [name for name in SHAPES if SHAPES[name].blocks])
def test_a_data_parallel_rank_has_its_blocks(name: str) -> None:
    shape = SHAPES[name]
    found = load(*shape.lines, component=True)
    blocks = {f"total_blocks/{rank}": value for rank, value in shape.blocks.items()}
    assert {key: value for key, value in found.items() if "blocks" in key} == blocks
    assert list(found)[: len(shape.expected())] == list(shape.expected())


def test_the_families_of_the_component_have_only_its_labels() -> None:
    engine = EngineLoad("sglang", lambda: CONSTANT, component=True)
    lines = ['token_usage{dp_rank="1"} 0.5', 'cache_hit_rate{dp_rank="0"} 0.75', "num_pages{} 3"]
    made = {family.name: family.lines.decode() for family in engine.families(page(*lines))}
    own = 'dynamo_component="backend",model="m"'
    assert made["dynamo_component_total_blocks"] == (
        f'dynamo_component_total_blocks{{dp_rank="0",{own}}} 3.0\n'
    )
    assert made["dynamo_component_gpu_cache_usage_percent"] == (
        f'dynamo_component_gpu_cache_usage_percent{{dp_rank="1",{own}}} 0.5\n'
    )
    assert made["dynamo_component_kv_cache_hit_rate"] == (
        f'dynamo_component_kv_cache_hit_rate{{dp_rank="0",{own}}} 0.75\n'
    )
    assert made["dynamometer_engine_kv_usage_ratio"] == (
        "dynamometer_engine_kv_usage_ratio"
        '{dynamo_component="backend",dynamo_namespace="dynamo",model="m"} 0.5\n'
    )


RANKS = {
    "one rank": {"running/0": 3, "queued/0": 3, "usage/0": 0.25},
    "two data-parallel ranks": {
        "running/0": 3, "running/1": 4, "queued/0": 1, "queued/1": 0,
        "usage/0": 0.5, "usage/1": 0.25,
    },
    "data-parallel attention over four tensor ranks, all of which write": {
        "running/0": 3, "running/1": 5, "usage/0": 0.5, "usage/1": 1.0,
    },
    "priorities": {"running/0": 6, "queued/0": 5},
    "a prefill engine": {"running/0": 1, "queued/0": 9},
    "a prefill engine with two data-parallel ranks": {
        "running/0": 0, "running/1": 1, "queued/0": 4, "queued/1": 0,
    },
    "nothing written yet but a constant": {},
    "nonsense beside what is right": {"running/1": 2},
}  # fmt: skip


@pytest.mark.parametrize("name", RANKS)
def test_a_data_parallel_rank_has_its_own_load(name: str) -> None:
    engine = EngineLoad("sglang", lambda: CONSTANT, ranks=True)
    found = shown(engine.families(page(*SHAPES[name].lines)))
    short = {"running_requests": "running", "queued_requests": "queued", "kv_usage_ratio": "usage"}
    of_ranks = {
        f"{short[name.partition('/')[0].removeprefix('rank_')]}/{name.partition('/')[2]}": value
        for name, value in found.items()
        if name.startswith("rank_")
    }
    assert of_ranks == RANKS[name]
    assert {n: v for n, v in found.items() if not n.startswith("rank_")} == SHAPES[name].expected()


INPUTS = {
    "running_requests": "num_running_reqs{} 0",
    "queued_requests": "num_grammar_queue_reqs{} 0",
    "kv_usage_ratio": "token_usage{} 0",
    "gpu_cache_usage_percent/0": "token_usage{} 0",
    "kv_cache_hit_rate/0": "cache_hit_rate{} 0",
}


TOTALS = ("generation_tokens_total", "prompt_tokens_total", "cached_prompt_tokens_total")


@pytest.mark.parametrize("renamed", dict.fromkeys(INPUTS.values()))
def test_a_missing_family_is_not_0(renamed: str) -> None:
    """An engine release that renames a family is not idle."""
    lines = ["page_size{} 16", *(line for line in INPUTS.values() if line != renamed)]
    expected = {name: 0.0 for name, line in INPUTS.items() if line != renamed}
    found = load(*dict.fromkeys(lines), component=True)
    assert found == expected | dict.fromkeys(TOTALS, 0)


def test_another_programs_page_has_no_load() -> None:
    assert load() == {}
    engine = EngineLoad("vllm", lambda: CONSTANT, component=True)
    families = parse(b"# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running 1\n")
    assert list(engine.families(families)) == []


def test_a_family_of_another_kind_is_not_read() -> None:
    text = b"# TYPE sglang:num_running_reqs summary\nsglang:num_running_reqs_count 5\n"
    assert list(EngineLoad("sglang", dict).families(parse(text))) == []


def test_the_same_families_give_the_same_objects() -> None:
    engine = EngineLoad("sglang", lambda: CONSTANT)
    one = page("num_running_reqs{} 1", "num_queue_reqs{} 1", "token_usage{} 0")
    made = engine.families(one)
    assert engine.families(one) is made
    other = engine.families(page("num_running_reqs{} 2", "num_queue_reqs{} 1", "token_usage{} 0"))
    assert [a is b for a, b in zip(made, other, strict=True)] == [False, *[True] * 5]


def test_labels_that_are_known_later_are_used() -> None:
    constant: dict[str, str] = {}
    engine = EngineLoad("sglang", lambda: constant)
    families = page("num_running_reqs{} 1")
    assert b"requests 1.0" in engine.families(families)[0].lines
    constant["model"] = "m"
    assert b'requests{model="m"} 1.0' in engine.families(families)[0].lines


COUNTERS = {
    "generation_tokens_total": "generation_tokens_total{} 5",
    "prompt_tokens_total": "prompt_tokens_total{} 5",
    "cached_prompt_tokens_total": 'cached_tokens_total{cache_source="device"} 5',
}


def test_an_ended_engine_keeps_its_totals_without_gauges() -> None:
    engine = EngineLoad("sglang", lambda: CONSTANT, component=True)
    engine.families(page("num_running_reqs{} 1", *COUNTERS.values()))
    assert shown(engine.families(page(*COUNTERS.values()))) == dict.fromkeys(TOTALS, 5)


@pytest.mark.parametrize("total", TOTALS)
def test_a_total_that_is_missing_for_a_while_does_not_fall(total: str) -> None:
    engine = EngineLoad("sglang", lambda: CONSTANT)
    running = "num_running_reqs{} 1"
    assert shown(engine.families(page(running)))[total] == 0
    engine.families(page(running, COUNTERS[total]))
    assert total not in shown(engine.families(page(running)))


@pytest.mark.parametrize("total", TOTALS)
def test_a_total_is_0_only_if_all_sources_are_known(total: str) -> None:
    known: list[bool] = []
    engine = EngineLoad("sglang", lambda: CONSTANT, complete=lambda: bool(known))
    families = page("num_running_reqs{} 1")
    assert total not in shown(engine.families(families))
    known.append(True)
    assert shown(engine.families(families))[total] == 0


def test_name_prefixes_that_hide_a_family_hide_the_load() -> None:
    engine = EngineLoad("sglang", dict)
    assert engine.derivable_from(())
    assert engine.derivable_from(("vllm:", "sglang:"))
    assert not engine.derivable_from(("sglang:num_",))


names = st.sampled_from(["num_running_reqs", "num_queue_reqs", "token_usage", "num_pages"])
values = st.dictionaries(st.tuples(names, st.integers(0, 3)), st.integers(0, 50), min_size=1)
replicas = st.lists(
    st.tuples(st.integers(0, 12), st.integers(0, 3), st.integers(0, 2)), unique=True, max_size=5
)


@given(values, replicas, st.randoms(use_true_random=False), st.booleans())
def test_replicas_never_change_the_totals(
    values: dict[tuple[str, int], int],
    others: list[tuple[int, int, int]],
    random: Random,
    priorities: bool,
) -> None:
    leading = [
        f'{name}{{dp_rank="{dp}",tp_rank="{dp}",pp_rank="0",moe_ep_rank="0"}} {value}'
        for (name, dp), value in values.items()
    ]
    replicated = [
        f'{name}{{dp_rank="{dp}",tp_rank="{dp + tp}",pp_rank="{pp}",moe_ep_rank="{ep}"}} 1000'
        for name, dp in values
        for tp, pp, ep in others
        if tp or pp or ep
    ]
    if priorities:
        replicated += [line.replace("{", '{priority="1",') for line in leading]
        leading = [line.replace("{", '{priority="",') for line in leading]
        replicated = [
            line if "priority" in line else line.replace("{", '{priority="",')
            for line in replicated
        ]
    lines = [*leading, *replicated]
    random.shuffle(lines)
    alone = load(*leading, component=True)
    assert load(*lines, component=True) == pytest.approx(alone)
