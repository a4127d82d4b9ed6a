"""SGLang: its command line, its routes, and what it says when it ends.

Started unmodified by `python -m sglang.launch_server`. Written against 0.5.23; nothing here
needs that version but the list of routes and the CPU flags.
"""

from __future__ import annotations

import argparse
import getpass
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Final

from dynamometer import names, settings
from dynamometer.engines import accelerators, sglang_config
from dynamometer.engines.interface import (
    DECODE,
    PREFILL,
    CommandFacts,
    CommandHelp,
    Launch,
    MetricSources,
    Route,
    Usage,
)
from dynamometer.engines.load_signals import EngineLoad
from dynamometer.engines.server_info import engine_info, model_cards, request_name
from dynamometer.engines.sglang_cpu import overlay
from dynamometer.errors import SettingsError
from dynamometer.http.addresses import free_port
from dynamometer.runtime.record import AGGREGATED

DEFAULT_PORT: Final = 30000
# What its processes call themselves: "sglang::scheduler".
TITLE: Final = "sglang::"
_MODULE_NAME: Final = "sglang.launch_server"
_SERVE: Final = ("sglang", "serve")
WITHOUT_METRICS: Final = (
    "--enable-metrics was not given: the page will have no sglang: families, only the runtime's own"
)
# Flags that make SGLang serve on a CPU, each measured to be needed there.
CPU_FLAGS: Final = {
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
    Route("/v1/chat/completions", "chat_completions", Usage.OPENAI),
    Route("/v1/completions", "completions", Usage.OPENAI),
    Route("/v1/embeddings", "embeddings", Usage.OPENAI),
    Route("/v1/responses", "responses", Usage.RESPONSES),
    Route("/v1/messages", "anthropic_messages", Usage.MESSAGES),
    Route("/v1/messages/count_tokens", "anthropic_count_tokens"),
    Route("/v1/score", "score", Usage.OPENAI),
    Route("/v1/rerank", "rerank"),
    Route("/v1/classify", "classify", Usage.OPENAI),
    Route("/v1/decisions", "decisions"),
    Route("/v1/tokenize", "tokenize"),
    Route("/v1/detokenize", "detokenize"),
    Route("/v1/audio/transcriptions", "audio_transcriptions", Usage.OPENAI),
    Route("/tokenize", "tokenize"),
    Route("/detokenize", "detokenize"),
    Route("/generate", "generate", Usage.GENERATE),
    Route("/encode", "encode"),
    Route("/classify", "classify"),
    Route("/separate_reasoning", "separate_reasoning"),
    Route("/parse_function_call", "parse_function_call"),
    Route("/invocations", "invocations", Usage.OPENAI),
)


_HELP: Final = CommandHelp(
    description="""\
Start SGLang and serve it: requests at its own OpenAI-compatible address and through the
frontend; /metrics, /health and /live at the system port.

Every flag that is not listed here goes to SGLang as it is; `python -m sglang.launch_server
--help` lists those. --model, --served-model-name and --enable-metrics are SGLang's too:
without --enable-metrics the page has no sglang: families.
""",
    examples="""\
  dyno sglang --model ./tiny --enable-metrics
  DYN_SYSTEM_PORT=9090 dyno sglang --model Qwen/Qwen3-8B --enable-metrics --tp-size 2
  dyno sglang --engine-python /opt/sglang/bin/python --model ./tiny --port 30000
""",
    component="backend; with --disaggregation-mode prefill: prefill",
)


class SGLang:
    """See `interface.StartableEngine`."""

    name = "sglang"
    title = "SGLang"
    routes: Mapping[str, Route] = {route.path: route for route in _ROUTES}
    # One forward pass through the scheduler: the model answers.
    health_path = "/health_generate"
    probe_path = "/health"
    models_path = "/v1/models"
    info_path = "/server_info"
    metric_prefixes: Sequence[str] = (names.name_prefix.SGLANG,)
    help = _HELP

    read_models = staticmethod(model_cards)
    request_name = staticmethod(request_name)
    read_info = staticmethod(engine_info)
    load_signals = staticmethod(EngineLoad)

    def launch_arguments(self, command: Sequence[str]) -> Sequence[str] | None:
        """See `interface.Engine.launch_arguments`."""
        return launch_arguments(command)

    def is_process(self, command: Sequence[str]) -> bool:
        """See `interface.Engine.is_process`: its processes set titles, "sglang::scheduler"."""
        titled = bool(command) and command[0].startswith(TITLE)
        return titled or launch_arguments(command) is not None

    def command_facts(
        self, arguments: Sequence[str], *, environment: Mapping[str, str], directory: Path
    ) -> CommandFacts:
        """See `interface.Engine.command_facts`."""
        try:
            known = known_flags(sglang_config.with_file(arguments, directory))
        except SettingsError:  # the engine itself reports it
            known = known_flags(())
        return CommandFacts(
            model=names.label_value(known.served_model_name or known.model or ""),
            host=known.host or "",
            port=_port(known.port) or DEFAULT_PORT,
            page_has_more=counts_on_its_page_alone(environment) if environment else None,
        )

    def plan(self, arguments: Sequence[str], *, directory: Path, python: str) -> Launch:
        """See `interface.StartableEngine.plan`."""
        given = sglang_config.with_file(arguments)
        known = known_flags(given)
        if known.model is None:
            raise SettingsError("--model is missing: a directory, or a name on a model hub")
        engine_port = free_port()
        command = [python, "-m", _MODULE_NAME, *arguments]
        command += ["--host", "127.0.0.1", "--port", str(engine_port)]
        # Of data-parallel ranks each one needs a port of its own, which SGLang finds itself.
        if known.nccl_port is None and known.dp_size in (None, "1"):
            command += ["--nccl-port", str(free_port())]
        environment = dict(os.environ)
        environment["PYTHONUNBUFFERED"] = "1"
        # The worker gives it a temporary directory of its own; a cache is to outlive that.
        cache = Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}"
        environment.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))
        notes: list[str] = []
        if _on_cpu(known.device):
            added = _missing(CPU_FLAGS, given)
            command += added
            overlay.switch_on(environment, directory / "plugin")
            why = "--device cpu was given" if known.device else "no accelerator was found"
            flags = " ".join(added) or "none were missing"
            notes.append(f"{why}: SGLang runs on the CPU, with flags added: {flags}")
        url = f"http://127.0.0.1:{engine_port}"
        sources = MetricSources()
        if known.enable_metrics:
            metrics = directory / "metrics"
            metrics.mkdir(mode=0o700)
            environment["PROMETHEUS_MULTIPROC_DIR"] = str(metrics)
            rust = counts_on_its_page_alone(environment)
            sources = MetricSources(directory=metrics, page_url=f"{url}/metrics" if rust else None)
        else:
            notes.append(WITHOUT_METRICS)
        return Launch(
            command=command,
            environment=environment,
            url=url,
            model=names.label_value(known.served_model_name or known.model),
            model_path=known.model,
            sources=sources,
            mode=mode(known),
            stream_usage=known.stream_usage,
            api_key=known.api_key,
            notes=tuple(notes),
        )

    def reason(self, log: Sequence[str], exit_code: int, launch: Launch) -> str:
        """See `interface.StartableEngine.reason`."""
        return reason(log, exit_code) + _hint(launch)

    def last_word(self, log: Sequence[str]) -> str:
        """See `interface.StartableEngine.last_word`: its lines have a stamp, warnings none."""
        own = (line for line in reversed(log) if _STAMP.match(line))
        return _STAMP.sub("", next(own, ""))


def launch_arguments(command: Sequence[str]) -> Sequence[str] | None:
    """The flags of a command line that starts SGLang; None where it starts something else.

    What merely has such words among its own (a shell's `-c`, an editor, sudo) starts none.
    """
    program = PurePath(command[0]).name if command else ""
    if (program, *command[1:2]) == _SERVE:
        return command[2:]
    if not program.startswith("python"):
        return None
    number = 1
    while number < len(command) and command[number].startswith("-") and command[number] != "-m":
        number += 2 if command[number] in ("-X", "-W") else 1
    first, second = (*command[number : number + 2], "", "")[:2]
    if "-c" in command[1:number]:
        return None
    if (first, second) == ("-m", _MODULE_NAME) or (PurePath(first).name, second) == _SERVE:
        return command[number + 2 :]
    return command[number + 1 :] if first.endswith("/sglang/launch_server.py") else None


def counts_on_its_page_alone(environment: Mapping[str, str]) -> bool:
    """Whether SGLang's Rust server is switched on: request metrics are on its own page alone."""
    return environment.get("SGLANG_RUST_SERVER", "0").lower() in ("1", "true", "yes")


def known_flags(arguments: Sequence[str]) -> argparse.Namespace:
    """The few flags of SGLang's that matter here; the rest is passed over."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--model", "--model-path", dest="model")
    parser.add_argument("--served-model-name")
    parser.add_argument("--device")
    parser.add_argument("--host")
    parser.add_argument("--port")
    parser.add_argument("--nccl-port")
    parser.add_argument("--dp-size", "--data-parallel-size", dest="dp_size")
    parser.add_argument("--api-key")
    parser.add_argument("--disaggregation-mode")
    parser.add_argument("--enable-metrics", action="store_true")
    parser.add_argument(
        "--stream-response-default-include-usage", dest="stream_usage", action="store_true"
    )
    try:
        return parser.parse_known_args(list(arguments))[0]
    except argparse.ArgumentError as error:
        raise SettingsError(str(error)) from None


def mode(known: argparse.Namespace) -> str:
    """What `--disaggregation-mode` says of the worker; SGLang itself refuses what is no mode."""
    phase: str = known.disaggregation_mode
    return phase if phase in (PREFILL, DECODE) else AGGREGATED


def _port(text: str | None) -> int | None:
    """Return the port that a command line names, if it is one."""
    try:
        return settings.port(text or "") or None
    except ValueError:
        return None


def _on_cpu(device: str | None) -> bool:
    if device is not None:
        return device == "cpu"
    return accelerators.find() is None


def _missing(flags: Mapping[str, str | None], arguments: Sequence[str]) -> list[str]:
    """The flags that the user has not given, as words of a command line."""
    given = {word.split("=", 1)[0].replace("_", "-") for word in arguments}
    missing = ((flag, value) for flag, value in flags.items() if flag not in given)
    return [word for pair in missing for word in pair if word is not None]


# A log line's own beginning: "[2026-01-31 12:00:00 TP0] ".
_STAMP: Final = re.compile(r"^\[\d{4}-\d\d-\d\d[^\]]*\]\s*")
_EXCEPTION: Final = re.compile(r"^(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Exit|Refused): \S")
_USAGE: Final = re.compile(r"^[\w. -]+: error: (?P<what>.+)")
_CRASH: Final = re.compile(r"^Subprocess \S+ .*crashed with exit code")
_LINES_OF_A_CRASH: Final = 60
_MODULE: Final = re.compile(r"No module named '?(?P<name>[\w.]+)'?")


def _hint(launch: Launch) -> str:
    """What we know of a model that the engine could not find."""
    path = Path(launch.model_path)
    if launch.model_path.startswith(("/", "./", "../", "~")):
        return "" if path.exists() else f"; there is no {launch.model_path}"
    offline = launch.environment.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on")
    if offline and not path.exists():
        return "; HF_HUB_OFFLINE is set: the model must be a local directory, or cached"
    return ""


def reason(log: Sequence[str], exit_code: int) -> str:
    """The last exception or usage error in `log`, else its last line; then how it ended.

    A child's exception stands before the server's word that a child failed: the last one in
    the log is the cause that was raised to the top.
    """
    ended = f"exit code {exit_code}" if exit_code >= 0 else f"signal {-exit_code}"
    lines = [_STAMP.sub("", line).strip() for line in log]
    crashes = [number for number, line in enumerate(lines) if _CRASH.match(line)]
    if crashes:  # what comes after it are its consequences
        lines = lines[max(0, crashes[0] - _LINES_OF_A_CRASH) : crashes[0] + 1]
    for line in reversed(lines):
        if usage := _USAGE.match(line):
            return f"{usage['what']} ({ended})"
        if _EXCEPTION.match(line):
            return f"{line} ({ended})"
        missing = _MODULE.search(line)
        if missing and missing["name"].split(".")[0] == "sglang":
            return (
                f"its interpreter has no SGLang ({ended}): install it there, or name the one "
                "that has it with --engine-python"
            )
    last = next((line for line in reversed(lines) if line), "it said nothing")
    return f"{last} ({ended})"
