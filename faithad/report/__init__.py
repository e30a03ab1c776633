"""The tables of a study, an audit or a search in, one self-contained HTML file out.

Reads Parquet and YAML below a root, local or remote, and needs neither torch nor Ray: a report can be made again on any
machine that sees the tables.
"""
