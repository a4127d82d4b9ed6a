"""SGLang: the routes, the command that starts it, and the reason why it ended.

A worker starts SGLang unmodified, by `python -m sglang.launch_server`. Only the list of routes and
the CPU flags depend on the version, 0.5.23.
"""

from __future__ import annotations

import argparse
import getpass
import os
import re
import signal
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from dynamometer import names
from dynamometer.engines import accelerators, sglang_flags, sglang_pairing, sglang_transfer
from dynamometer.engines.interface import (
    CommandFacts,
    CommandHelp,
    Launch,
    MetricSources,
    Pairing,
    Probes,
    Route,
    Usage,
)
from dynamometer.engines.load_signals import EngineLoad
from dynamometer.engines.sglang_cpu import overlay
from dynamometer.engines.sglang_info import engine_info, model_cards, request_name
from dynamometer.engines.sglang_log import PublicLines
from dynamometer.engines.sglang_names import REQUEST_TOTALS, sglang
from dynamometer.engines.sglang_probes import PROBES
from dynamometer.errors import SettingsError
from dynamometer.exposition.label_bounds import ClientLabels
from dynamometer.http.addresses import free_port
from dynamometer.runtime.record import AGGREGATED, PREFILL
from dynamometer.variables import LOOPBACK

# The beginning of the titles of SGLang's processes, such as "sglang::scheduler".
TITLE: Final = "sglang::"
WITHOUT_METRICS: Final = (
    "--enable-metrics is missing: the page will have no sglang: families, only the runtime's own"
)
METRICS_OF_ALL_RANKS: Final = "--enable-metrics-for-all-schedulers"
_THREADS: Final = "SGLANG_CPU_OMP_THREADS_BIND"
# Flags that SGLang needs on a CPU; without any of them, it does not start or serve there.
CPU_FLAGS: Final[Mapping[str, str | None]] = {
    "--device": "cpu",
    "--attention-backend": "torch_native",
    "--sampling-backend": "pytorch",
    "--dtype": "float32",
    "--grammar-backend": "none",
    "--mem-fraction-static": "0.1",
    "--max-total-tokens": "8192",
    "--max-running-requests": "8",
    "--skip-server-warmup": None,
    "--sleep-on-idle": None,
}

_ROUTES: Final = (
    Route("/v1/chat/completions", "chat_completions", Usage.OPENAI, Pairing.PAIR),
    Route("/v1/completions", "completions", Usage.OPENAI, Pairing.PAIR),
    Route("/v1/embeddings", "embeddings", Usage.OPENAI),
    Route("/v1/responses", "responses", Usage.RESPONSES, Pairing.PAIR),
    Route("/v1/messages", "anthropic_messages", Usage.MESSAGES, Pairing.PAIR),
    Route("/v1/messages/count_tokens", "anthropic_count_tokens", pairing=Pairing.ALONE),
    Route("/v1/score", "score", Usage.OPENAI),
    Route("/v1/rerank", "rerank"),
    Route("/v1/classify", "classify", Usage.OPENAI),
    Route("/v1/decisions", "decisions"),
    Route("/v1/tokenize", "tokenize", pairing=Pairing.ALONE),
    Route("/v1/detokenize", "detokenize", pairing=Pairing.ALONE),
    Route("/v1/audio/transcriptions", "audio_transcriptions", Usage.OPENAI),
    Route("/tokenize", "tokenize", pairing=Pairing.ALONE),
    Route("/detokenize", "detokenize", pairing=Pairing.ALONE),
    Route("/generate", "generate", Usage.GENERATE, Pairing.PAIR),
    Route("/encode", "encode"),
    Route("/classify", "classify"),
    Route("/separate_reasoning", "separate_reasoning", pairing=Pairing.ALONE),
    Route("/parse_function_call", "parse_function_call", pairing=Pairing.ALONE),
    Route("/invocations", "invocations", Usage.OPENAI, Pairing.PAIR),
)


# The HTTP server counts by path and method, whether or not a route exists. A request's `priority`
# is a label with --enable-priority-scheduling.
_CLIENT_LABELS: Final = ClientLabels(
    prefixes=(names.name_prefix.SGLANG,),
    names=frozenset({"endpoint", "method", "priority"}),
    summed_gauges=frozenset({sglang.HTTP_REQUESTS_ACTIVE}),
)


_HELP: Final = CommandHelp(
    description="""\
Start SGLang and a worker for it. The worker serves requests at its own OpenAI-compatible address
and through the frontend, and /metrics, /health and /live at the system port.

Every flag that is not listed here is passed to SGLang unchanged; `python -m sglang.launch_server
--help` lists SGLang's flags, such as --model, --served-model-name and --enable-metrics. Without
--enable-metrics, the page has no sglang: families.

--disaggregation-mode prefill or decode starts one side of a pair: see docs/disaggregation.md.
--nnodes starts one node of an engine on several machines: see docs/two-nodes.md.
""",
    examples="""\
  dyno sglang --model ./tiny --enable-metrics
  DYN_SYSTEM_PORT=9090 dyno sglang --model Qwen/Qwen3-8B --enable-metrics --tp-size 2
  dyno sglang --engine-python /opt/sglang/bin/python --model ./tiny --port 30000
  dyno sglang --model ./tiny --enable-metrics --disaggregation-mode prefill    # and another: decode
""",
    component="backend; with --disaggregation-mode prefill: prefill",
)


class SGLang:
    """See `interface.StartableEngine`."""

    name = "sglang"
    title = "SGLang"
    routes: Mapping[str, Route] = {route.path: route for route in _ROUTES}
    # SGLang answers this route after a forward pass.
    health_path = "/health_generate"
    probe_path = "/health"
    models_path = "/v1/models"
    info_path = "/server_info"
    metric_prefixes: Sequence[str] = (names.name_prefix.SGLANG,)
    client_labels = _CLIENT_LABELS
    labels_header = sglang_flags.LABELS_HEADER
    request_totals = REQUEST_TOTALS
    pairing_fields = sglang_pairing.FIELDS
    help = _HELP
    probes: Probes | None = PROBES

    pair_members = staticmethod(sglang_pairing.pair_members)
    read_models = staticmethod(model_cards)
    request_name = staticmethod(request_name)
    read_info = staticmethod(engine_info)
    load_signals = staticmethod(EngineLoad)

    def launch_arguments(self, command: Sequence[str]) -> Sequence[str] | None:
        """See `interface.Engine.launch_arguments`."""
        return sglang_flags.launch_arguments(command)

    def is_process(self, command: Sequence[str]) -> bool:
        """See `interface.Engine.is_process`: processes have titles such as "sglang::scheduler"."""
        titled = bool(command) and command[0].startswith(TITLE)
        return titled or sglang_flags.launch_arguments(command) is not None

    def command_facts(
        self, arguments: Sequence[str], *, environment: Mapping[str, str], directory: Path
    ) -> CommandFacts:
        """See `interface.Engine.command_facts`."""
        try:
            flags = sglang_flags.parse(sglang_flags.with_config_file(arguments, directory))
        except SettingsError:  # SGLang itself reports the fault
            flags = sglang_flags.parse(())
        return CommandFacts(
            model=names.label_value(flags.served_model_name or flags.model or ""),
            host=flags.host or "",
            port=sglang_flags.port(flags),
            page_has_more=page_has_more(environment) if environment else None,
            client_labels=client_labels(flags),
        )

    def plan(
        self,
        arguments: Sequence[str],
        *,
        directory: Path,
        python: str,
        transfer_host: str = LOOPBACK,
    ) -> Launch:
        """See `interface.StartableEngine.plan`."""
        all_arguments = sglang_flags.with_config_file(arguments)
        flags = sglang_flags.parse(all_arguments)
        if flags.model is None:
            raise SettingsError("--model is missing: give a directory, or a name on a model hub")
        mode, node = sglang_flags.mode(flags), sglang_flags.node(flags)
        environment = _environment()
        rust = page_has_more(environment)
        ports = {"--port": free_port()}
        # All nodes use the port of --dist-init-addr. Each data-parallel rank needs a port of its
        # own, which SGLang chooses itself.
        if flags.nccl_port is None and flags.dp_size == 1 and node.count == 1:
            ports["--nccl-port"] = free_port()
        host, bootstrap, notes = LOOPBACK, None, list[str]()
        if mode != AGGREGATED:
            address = sglang_transfer.address(transfer_host)
            sglang_transfer.set_address(environment, address)
            notes += sglang_transfer.exposure(flags, mode, address)
            if mode == PREFILL:
                host = address  # the bootstrap server listens where the API does
                bootstrap = sglang_transfer.bootstrap(flags, node, address, ports, rust=rust)
        command = [python, "-m", sglang_flags.MODULE_NAME, *arguments, "--host", host]
        for flag, port in ports.items():
            command += [flag, str(port)]
        if _on_cpu(flags.device):
            added = sglang_flags.missing(
                {**CPU_FLAGS, **sglang_transfer.cpu_flags(mode)}, all_arguments
            )
            command += added
            overlay.enable(environment, directory / "plugin")
            for variable, value in _cpu_variables(flags, mode, node).items():
                environment.setdefault(variable, value)
            reason = "--device cpu was given" if flags.device else "no accelerator was found"
            shown = " ".join(added) or "none"
            notes.append(f"{reason}: SGLang runs on the CPU, with these flags added: {shown}")
        url = f"http://{sglang_transfer.bracketed(host)}:{ports['--port']}"
        sources = MetricSources()
        if flags.enable_metrics:
            metrics = directory / "metrics"
            metrics.mkdir(mode=0o700)
            environment["PROMETHEUS_MULTIPROC_DIR"] = str(metrics)
            sources = MetricSources(directory=metrics, page_url=f"{url}/metrics" if rust else None)
            if _needs_metrics_of_all_ranks(flags, node):
                command.append(METRICS_OF_ALL_RANKS)
                notes.append(f"{METRICS_OF_ALL_RANKS} was added: each rank has series of its own")
        else:
            notes.append(WITHOUT_METRICS)
        return Launch(
            command=command,
            environment=environment,
            url=url,
            port_flags=tuple(ports),
            model=names.label_value(flags.served_model_name or flags.model),
            model_path=flags.model,
            sources=sources,
            mode=mode,
            bootstrap=bootstrap,
            nodes=node.count,
            node_rank=node.rank,
            # Only data-parallel ranks have requests of their own.
            repeats_node_0=node.rank > 0 and sglang_flags.data_parallel_ranks(flags) == 1,
            group=node.group,
            stream_usage=flags.stream_usage,
            labels_header=sglang_flags.labels_header(flags),
            api_key=flags.api_key,
            client_labels=client_labels(flags),
            notes=tuple(notes),
        )

    def describe_exit(self, log: Sequence[str], exit_code: int, launch: Launch) -> str:
        """See `interface.StartableEngine.describe_exit`."""
        return exit_reason(log, exit_code) + (
            sglang_transfer.missing_prerequisite(log) or _hint(launch)
        )

    def public_lines(self) -> Callable[[str], str | None]:
        """See `interface.StartableEngine.public_lines`."""
        return PublicLines()

    def describe_progress(self, log: Sequence[str]) -> str:
        """See `interface.StartableEngine.describe_progress`; SGLang stamps only its own lines."""
        stamped = (line for line in reversed(log) if _STAMP.match(line))
        return _STAMP.sub("", next(stamped, ""))


def client_labels(flags: argparse.Namespace) -> ClientLabels:
    """Return the labels whose values come from clients, with those that a request's header sets."""
    return replace(_CLIENT_LABELS, names=_CLIENT_LABELS.names | set(flags.custom_labels))


def page_has_more(environment: Mapping[str, str]) -> bool:
    """Return whether SGLang uses its Rust server, whose own page alone has request metrics."""
    return environment.get("SGLANG_RUST_SERVER", "0").lower() in ("1", "true", "yes", "y")


def _environment() -> dict[str, str]:
    """Return the environment of an engine, before the variables that depend on its flags."""
    environment = dict(os.environ)
    environment["PYTHONUNBUFFERED"] = "1"
    # The cache must outlive the temporary directory that the worker gives the engine.
    cache = Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}"
    environment.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))
    return environment


def _needs_metrics_of_all_ranks(flags: argparse.Namespace, node: sglang_flags.Node) -> bool:
    """Return whether ranks would be missing on the page without the flag.

    Not for tensor parallelism on one node: all ranks report the same values, which a sum over the
    series would add up.
    """
    parallel = sglang_flags.data_parallel_ranks(flags) > 1 or node.rank > 0
    return parallel and not flags.metrics_of_all_ranks


def _cpu_variables(
    flags: argparse.Namespace, mode: str, node: sglang_flags.Node
) -> Mapping[str, str]:
    variables = dict(sglang_transfer.cpu_variables(flags, mode))
    if (ranks := sglang_flags.ranks(flags)) > 1:
        variables[_THREADS] = _thread_bindings(max(1, ranks // node.count))
    return variables


def _thread_bindings(ranks: int) -> str:
    """Return a set of CPUs for each rank; without one, SGLang needs a NUMA node for each rank."""
    cpus = sorted(os.sched_getaffinity(0))
    share = max(1, len(cpus) // ranks)
    starts = [rank * share % len(cpus) for rank in range(ranks)]
    return "|".join(",".join(map(str, cpus[start : start + share])) for start in starts)


def _on_cpu(device: str | None) -> bool:
    if device is not None:
        return device == "cpu"
    return accelerators.find() is None


# The time stamp of a log line: "[2026-01-31 12:00:00 TP0] ".
_STAMP: Final = re.compile(r"^\[\d{4}-\d\d-\d\d[^\]]*\]\s*")
# A time stamp, or the margin of an exception group.
_PREFIX: Final = re.compile(rf"{_STAMP.pattern}|^\s+[|+] ")
# An exception may have no message.
_EXCEPTION: Final = re.compile(
    r"^(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Exit|Refused)(?:: \S|$)"
)
_USAGE: Final = re.compile(r"^[\w. -]+: error: (?P<what>.+)")
_CRASH: Final = re.compile(r"^Subprocess \S+ .*crashed with exit code")
_LINES_OF_A_CRASH: Final = 60
_MODULE: Final = re.compile(r"No module named '?(?P<name>[\w.]+)'?")


def _hint(launch: Launch) -> str:
    """Return a hint about a model that does not exist, for the end of a message."""
    path = Path(launch.model_path)
    if launch.model_path.startswith(("/", "./", "../", "~")):
        return "" if path.exists() else f"; {launch.model_path} does not exist"
    offline = launch.environment.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on")
    if offline and not path.exists():
        return "; HF_HUB_OFFLINE is set: the model must be a local directory, or in the cache"
    return ""


def exit_reason(log: Sequence[str], exit_code: int) -> str:
    """Return the last exception or usage error in `log`, or its last line, with the exit code.

    After a SIGKILL from outside, the last line is omitted: the engine could not log the reason.
    Lines with the contents of a request are ignored.

    SGLang logs the exception of a child process before the message that a child has failed; the
    last exception is the one that ended the engine.
    """
    ended = f"exit code {exit_code}" if exit_code >= 0 else f"signal {-exit_code}"
    public = PublicLines()
    shown = [line for line in map(public, log) if line is not None]
    lines = [_PREFIX.sub("", line).strip() for line in shown]
    crashes = [number for number, line in enumerate(lines) if _CRASH.match(line)]
    if crashes:  # later lines are consequences of the crash
        lines = lines[max(0, crashes[0] - _LINES_OF_A_CRASH) : crashes[0] + 1]
    for line in reversed(lines):
        if usage := _USAGE.match(line):
            return f"{usage['what']} ({ended})"
        if _EXCEPTION.match(line):
            return f"{line} ({ended})"
        missing = _MODULE.search(line)
        if missing and missing["name"].split(".")[0] == "sglang":
            return (
                f"SGLang is not installed for its interpreter ({ended}): install it, or choose "
                "another interpreter with --engine-python"
            )
    last = next((line for line in reversed(lines) if line), "")
    if exit_code >= 0 or crashes:  # after a crash, SGLang kills its own processes
        return f"{last} ({ended})" if last else f"{ended}, without a message"
    killed = f"it was killed by {ended} ({_signal_name(-exit_code)})"
    if not last or exit_code == -signal.SIGKILL:
        return killed
    return f"{killed}; its last message: {last}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return signal.strsignal(number) or "unknown"
