"""YAML in, one frozen and validated configuration out: a study or an audit. Without torch."""
