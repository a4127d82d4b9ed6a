"""Prometheus and Grafana for this project's pages: `dyno observe`, rules and dashboards."""
