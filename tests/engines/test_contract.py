"""Every engine of `kinds` fulfils the contract of `engines.interface`."""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from dynamometer.engines import answers, kinds, requests, streams
from dynamometer.engines.interface import (
    Engine,
    Launch,
    MetricSources,
    ModelCards,
    Pairing,
    StartableEngine,
    Usage,
)
from dynamometer.engines.mocker import Mocker
from dynamometer.engines.sglang import SGLang
from dynamometer.errors import SettingsError
from dynamometer.runtime.record import Json
from parsing import parse

SAMPLE = Path(__file__).parent.parent / "samples" / "sglang-0.5.23"
STARTABLE: tuple[StartableEngine, ...] = (SGLang(), Mocker())
EVERY = pytest.mark.parametrize("engine", kinds.ENGINES.values(), ids=lambda e: e.name)
STARTED = pytest.mark.parametrize("engine", STARTABLE, ids=lambda e: e.name)
MODELS: Json = {"data": [{"id": "m", "max_model_len": 64}, {"id": "a"}, {"id": "\ud800"}, {}, 1]}


def test_the_startable_engines_are_among_all() -> None:
    assert {engine.name for engine in STARTABLE} <= kinds.ENGINES.keys()


@EVERY
def test_an_engine_is_found_by_its_kind(engine: Engine) -> None:
    assert kinds.find(engine.name) is engine
    assert kinds.find("") is kinds.DEFAULT
    assert kinds.find("engine of a later release") is None


@EVERY
def test_its_paths_are_absolute_and_a_path_has_one_name_at_all_engines(engine: Engine) -> None:
    assert engine.routes
    for path, route in engine.routes.items():
        assert path == route.path
        assert path.startswith("/")
        assert kinds.ROUTES[path].name == route.name
    for path in (engine.health_path, engine.probe_path, engine.models_path, engine.info_path):
        assert path.startswith("/")
        assert path not in engine.routes
    assert all(engine.metric_prefixes)
    assert engine.title


@EVERY
def test_a_path_needs_the_same_workers_at_all_engines(engine: Engine) -> None:
    for path, route in engine.routes.items():
        assert kinds.ROUTES[path].pairing is route.pairing
    paired = {path for path, route in engine.routes.items() if route.pairing is Pairing.PAIR}
    alone = {path for path, route in engine.routes.items() if route.pairing is Pairing.ALONE}
    assert {"/v1/chat/completions", "/v1/completions"} <= paired
    # An answer that generates tokens counts them; a prompt that is only tokenized does not.
    assert all(engine.routes[path].counts_tokens for path in paired)
    assert not any(engine.routes[path].counts_tokens for path in alone)


@EVERY
def test_the_members_of_a_pair_are_refused_from_clients_and_never_repeated(engine: Engine) -> None:
    found = [engine.pair_members("prefill.example:8998") for _ in range(100)]
    assert all(members.keys() <= engine.pairing_fields.members for members in found)
    assert len({json.dumps(members) for members in found}) == 100
    assert engine.pair_members("[::1]:1").keys() == found[0].keys()


@EVERY
def test_headers_that_only_a_frontend_may_set_are_in_lower_case(engine: Engine) -> None:
    fields = engine.pairing_fields
    assert all(name == name.lower() for name in fields.headers | fields.rank_headers)


@EVERY
def test_each_dialect_of_its_routes_is_read(engine: Engine) -> None:
    for route in engine.routes.values():
        reader = streams.StreamReader(route.usage, hide_usage=route.takes_stream_options)
        assert reader.feed(b"data: {}\n\n", 1.0) == b"data: {}\n\n"
        assert answers.read_answer(b"{}", route.usage) == answers.Answer()
        assert route.counts_tokens is (route.usage is not Usage.NONE)


@EVERY
def test_a_request_names_a_model_and_for_an_adapter_also_its_base(
    engine: Engine,
) -> None:
    assert engine.request_name("m", {"id": "m", "parent": None}) == "m"
    assert engine.request_name("a", {"id": "a", "parent": "m"}) == "m:a"
    cards: list[Json] = [None, "m", [], {}, {"parent": 7}, {"parent": ""}]
    for card in cards:
        assert engine.request_name("m", card) == "m"


@EVERY
def test_usage_is_added_to_a_chat_and_nothing_else_changes(engine: Engine) -> None:
    route = engine.routes["/v1/chat/completions"]
    body = requests.parse(b'{"model":"m","stream":true,"x":1.0}', "application/json")
    assert route.takes_stream_options
    assert body.add_usage
    usage = b',"stream_options":{"include_usage":true}}'
    assert body.with_usage() == body.content.removesuffix(b"}") + usage


@EVERY
def test_its_models_are_read(engine: Engine) -> None:
    assert engine.read_models(MODELS).names == ("m", "a")
    nonsense: list[Json] = [None, [], {}, {"data": None}, {"data": [None]}, "x", 1]
    for answer in nonsense:
        assert engine.read_models(answer).names == ()


@EVERY
def test_its_server_info_is_read(engine: Engine) -> None:
    models = engine.read_models(MODELS)
    info = engine.read_info({"version": "1", "page_size": 16}, models)
    assert info == {"version": "1", "kv_block_size": 16, "context_length": 64}
    nonsense: list[Json] = [None, [], "x", {"version": 1, "page_size": "x", "internal_states": 3}]
    for answer in nonsense:
        assert engine.read_info(answer, ModelCards()) == {}


@EVERY
def test_its_load_is_derived_from_its_own_page(engine: Engine) -> None:
    families = parse((SAMPLE / "expected.prom").read_bytes())
    load = engine.load_signals("e", dict)
    wanted = [family for family in families if family.metadata.text_name in load.names]
    found = {family.metadata.text_name for family in load.families(wanted)}
    assert {
        "dynamometer_engine_running_requests",
        "dynamometer_engine_queued_requests",
        "dynamometer_engine_kv_usage_ratio",
        "dynamometer_engine_generation_tokens_total",
        "dynamometer_engine_prompt_tokens_total",
        "dynamometer_engine_cached_prompt_tokens_total",
    } <= found
    assert load.derivable_from(())
    assert load.derivable_from(engine.metric_prefixes)
    assert not load.derivable_from(("another_engine_",))


@EVERY
def test_its_totals_of_requests_are_known(engine: Engine) -> None:
    """A health check, a scrape and time change none of them; tests/main_job asks the engine."""
    families = parse((SAMPLE / "expected.prom").read_bytes())
    found = {f.metadata.sample_name for f in families if engine.request_totals.values(f)}
    assert "sglang:generation_tokens_total" in found
    assert not [name for name in found if "http_" in name or "cpu_seconds" in name]


@EVERY
def test_the_command_line_of_another_program_is_not_its(engine: Engine) -> None:
    for command in ([], ["bash"], ["vim", f"{engine.name}.py"]):
        assert engine.launch_arguments(command) is None
        assert not engine.is_process(command)


@EVERY
def test_flags_of_a_running_engine_have_its_address(engine: Engine, tmp_path: Path) -> None:
    flags = ["--model", "m", "--host", "::1", "--port", "7"]
    facts = engine.command_facts(flags, environment={"A": "b"}, directory=tmp_path)
    assert (facts.model, facts.host, facts.port, facts.page_has_more) == ("m", "::1", 7, False)
    unknown = engine.command_facts(["--port"], environment={}, directory=tmp_path)
    assert (unknown.model, unknown.page_has_more) == ("", None)
    assert unknown.port > 0


@EVERY
def test_labels_of_clients_are_those_of_its_server_and_its_flags(
    engine: Engine, tmp_path: Path
) -> None:
    assert {"endpoint", "method", "priority"} <= engine.client_labels.names
    families = parse((SAMPLE / "expected.prom").read_bytes())
    gauges = {family.name for family in families if family.metadata.type == "gauge"}
    assert engine.client_labels.summed_gauges <= gauges
    flags = ["--tokenizer-metrics-allowed-custom-labels", "team", "tier", "--enable-metrics"]
    facts = engine.command_facts(flags, environment={}, directory=tmp_path)
    assert facts.client_labels.names == engine.client_labels.names | {"team", "tier"}
    assert facts.client_labels.summed_gauges == engine.client_labels.summed_gauges


@STARTED
def test_a_plan_starts_it_on_loopback_with_its_flags_and_metrics(
    engine: StartableEngine, tmp_path: Path
) -> None:
    flags = ["--model", "some/model", "--served-model-name", "m", "--enable-metrics"]
    launch = engine.plan([*flags, "--device", "cuda"], directory=tmp_path, python=sys.executable)
    assert launch.command[0] == sys.executable
    place = list(launch.command).index("--model")
    assert launch.command[place : place + len(flags)] == flags
    assert launch.url.startswith("http://127.0.0.1:")
    assert launch.url.rpartition(":")[2] in launch.command
    assert (launch.model, launch.model_path) == ("m", "some/model")
    assert launch.sources.directory is not None
    assert launch.sources.directory.is_dir()
    assert launch.environment["PROMETHEUS_MULTIPROC_DIR"] == str(launch.sources.directory)
    assert launch.sources.directory
    assert not launch.stream_usage


@STARTED
def test_without_metrics_a_plan_has_no_source_and_says_so(
    engine: StartableEngine, tmp_path: Path
) -> None:
    launch = engine.plan(["--model", "m"], directory=tmp_path, python=sys.executable)
    assert launch.sources == MetricSources()
    assert any("--enable-metrics" in note for note in launch.notes)


@STARTED
def test_a_plan_without_a_model_names_the_flag(engine: StartableEngine, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--model"):
        engine.plan([], directory=tmp_path, python=sys.executable)


@STARTED
def test_usage_in_every_stream_is_a_known_flag(engine: StartableEngine, tmp_path: Path) -> None:
    flags = ["--model", "m", "--stream-response-default-include-usage"]
    assert engine.plan(flags, directory=tmp_path, python=sys.executable).stream_usage


@STARTED
@pytest.mark.parametrize(
    ("header", "known"), [("X-Tenant", "x-tenant"), ("a b", ""), ("a\nb", ""), ("\ud800", "")]
)
def test_a_renamed_header_of_labels_is_known(
    engine: StartableEngine, tmp_path: Path, header: str, known: str
) -> None:
    flags = ["--model", "m", "--tokenizer-metrics-custom-labels-header", header]
    assert engine.plan(flags, directory=tmp_path, python=sys.executable).labels_header == known


@STARTED
def test_a_restart_has_other_ports_and_the_same_flags(
    engine: StartableEngine, tmp_path: Path
) -> None:
    launch = engine.plan(["--model", "m"], directory=tmp_path, python=sys.executable)
    ports = iter(range(1, 10))
    again = launch.with_other_ports(lambda: next(ports))
    changed = [
        (again.command[place - 1], after)
        for place, (before, after) in enumerate(zip(launch.command, again.command, strict=True))
        if before != after
    ]
    assert changed == [(flag, str(port)) for port, flag in enumerate(launch.port_flags, start=1)]
    assert again.url == "http://127.0.0.1:1"
    assert again.environment == launch.environment
    assert replace(again, command=launch.command, url=launch.url) == launch


@STARTED
def test_a_restart_moves_the_bootstrap_server_of_a_prefill_engine(
    engine: StartableEngine, tmp_path: Path
) -> None:
    flags = ["--model", "m", "--disaggregation-mode", "prefill"]
    launch = engine.plan(flags, directory=tmp_path, python=sys.executable)
    assert launch.mode == "prefill"
    assert launch.bootstrap is not None
    assert launch.bootstrap.rpartition(":")[2] in launch.command
    ports = iter(range(1, 10))
    again = launch.with_other_ports(lambda: next(ports))
    assert again.bootstrap in {f"127.0.0.1:{port}" for port in range(1, 10)}
    assert again.bootstrap.rpartition(":")[2] in again.command


@STARTED
def test_an_engine_on_two_nodes_is_started_by_two_workers(
    engine: StartableEngine, tmp_path: Path
) -> None:
    def plan(*flags: str) -> Launch:
        directory = Path(tempfile.mkdtemp(dir=tmp_path))
        return engine.plan(["--model", "m", *flags], directory=directory, python=sys.executable)

    two = ("--nnodes", "2", "--dist-init-addr", "h:7")
    found = [plan(*two, "--node-rank", str(rank)) for rank in (0, 1)]
    assert [(launch.nodes, launch.node_rank) for launch in found] == [(2, 0), (2, 1)]
    assert len({launch.group for launch in found}) == 1
    assert plan("--dist-init-addr", "h:7").group == ""
    for wrong in (("--node-rank", "1"), two[:2], (*two, "--node-rank", "2")):
        with pytest.raises(SettingsError, match=r"--node-rank|--dist-init-addr"):
            plan(*wrong)


def test_a_restart_keeps_a_port_that_the_user_chose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SGLang's Rust server has a page of its own, at the address of the server."""
    monkeypatch.setenv("SGLANG_RUST_SERVER", "1")
    flags = ["--model", "m", "--nccl-port", "4000", "--enable-metrics"]
    launch = SGLang().plan(flags, directory=tmp_path, python=sys.executable)
    again = launch.with_other_ports(lambda: 5)
    assert again.command[list(again.command).index("--nccl-port") + 1] == "4000"
    assert again.sources.page_url == "http://127.0.0.1:5/metrics"


@STARTED
def test_an_end_has_a_reason_and_a_start_has_progress(
    engine: StartableEngine, tmp_path: Path
) -> None:
    launch = engine.plan(["--model", "m"], directory=tmp_path, python=sys.executable)
    log = ["[2026-01-31 12:00:00] loading", "ValueError: no such thing"]
    assert "ValueError: no such thing" in engine.describe_exit(log, 1, launch)
    assert "exit code 1" in engine.describe_exit([], 1, launch)
    assert engine.describe_progress(log[:1]).endswith("loading")
    assert engine.describe_progress([]) == ""


@STARTED
def test_help_names_the_command(engine: StartableEngine) -> None:
    assert engine.help.description.strip()
    assert "--model" in engine.help.examples
    assert json.dumps(engine.help.component)
