"""Prefill and decode workers that can serve a request together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamometer.runtime import disaggregation
from dynamometer.runtime.disaggregation import Pairs, misfit_reason
from dynamometer.runtime.record import Json, Record, Role, State


def side(
    number: int, mode: str, info: Mapping[str, Json], *, bootstrap: str | None = None
) -> Record:
    """Return a ready worker; `info` also has its namespace and the kind of its engine."""
    return Record(
        role=Role.WORKER,
        id=number,
        namespace=str(info.get("namespace")),
        component="backend",
        engine=str(info.get("engine")),
        models=("m",),
        mode=mode,
        request_url=f"http://127.0.0.1:{number}",
        bootstrap=bootstrap,
        engine_info={name: value for name, value in info.items() if value is not None},
        state=State.READY,
    )


def fit(prefill: Record, decode: Record) -> bool:
    """Return whether two workers fit, by their properties alone."""
    same = (prefill.namespace, prefill.engine) == (decode.namespace, decode.engine)
    infos = prefill.engine_info, decode.engine_info
    return (
        same
        and prefill.bootstrap is not None
        and all(
            infos[0][name] == infos[1][name]
            for name in ("kv_block_size", "kv_cache_dtype")
            if name in infos[0] and name in infos[1]
        )
    )


properties = st.fixed_dictionaries(
    {
        "namespace": st.sampled_from(["a", "b"]),
        "engine": st.sampled_from(["sglang", "mocker"]),
        "kv_block_size": st.sampled_from([None, 1, 16]),
        "kv_cache_dtype": st.sampled_from([None, "auto", "fp8_e4m3"]),
    }
)


@given(
    st.lists(st.tuples(properties, st.sampled_from([None, "127.0.0.1:1"])), max_size=5),
    st.lists(properties, max_size=5),
)
def test_pairs_are_all_workers_that_fit_another_one(
    first: Sequence[tuple[dict[str, Json], str | None]], second: Sequence[dict[str, Json]]
) -> None:
    prefill = [
        side(number, "prefill", info, bootstrap=bootstrap)
        for number, (info, bootstrap) in enumerate(first, 1)
    ]
    decode = [side(number, "decode", info) for number, info in enumerate(second, 101)]
    pairs = Pairs.of(prefill, decode)
    fitting = {one.id: tuple(other for other in prefill if fit(other, one)) for one in decode}
    if pairs is None:
        assert not any(fitting.values())
        assert bool(misfit_reason(prefill, decode)) is bool(prefill and decode)
        return
    assert {one.id: pairs.prefill_for(one) for one in decode} == fitting
    assert pairs.decode == tuple(one for one in decode if fitting[one.id])
    paired = {other.id for others in fitting.values() for other in others}
    assert pairs.prefill == tuple(other for other in prefill if other.id in paired)


def test_decode_workers_that_fit_the_same_workers_share_them() -> None:
    pairs = Pairs.of(
        [side(1, "prefill", {}, bootstrap="127.0.0.1:1")],
        [side(101, "decode", {}), side(102, "decode", {})],
    )
    assert pairs is not None
    first, second = pairs.decode
    assert pairs.prefill_for(first) is pairs.prefill_for(second)


def test_workers_that_fit_the_same_ones_are_compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each refused request has the reason, so that a large fleet must not make it slow."""
    compared = []

    def compare(one: Record, other: Record) -> tuple[int, str] | None:
        compared.append((one.id, other.id))
        return misfit(one, other)

    misfit = disaggregation._misfit
    monkeypatch.setattr(disaggregation, "_misfit", compare)
    prefill = [side(number, "prefill", {"namespace": "a"}) for number in range(1, 51)]
    decode = [side(number, "decode", {"namespace": "b"}) for number in range(101, 151)]
    assert f"prefill worker {1:016x}" in misfit_reason(prefill, decode)
    assert compared == [(1, 101)]
