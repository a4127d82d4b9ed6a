"""A simulated engine, for tests of scale and of faults, and for work on dashboards.

The simulated engine has SGLang's HTTP routes and writes multiprocess files as SGLang does. All
output shows that the engine is simulated: log lines begin with `[simulated engine]`, series have
`engine_type="mocker"`, and answers have `"system_fingerprint":"mocker"`. No command starts the
simulated engine by default.
"""
