"""A simulated engine, for tests of scale and of faults, and for work on dashboards.

It speaks SGLang's HTTP and writes the same kind of multiprocess files, and says on every line
that it writes that it is none: log lines begin with `simulated engine`, series have
`engine_type="mocker"`, answers have `"system_fingerprint":"mocker"`. Never a default.
"""
