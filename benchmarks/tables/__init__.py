"""The tables that READMEs show, made of the rows in benchmarks/results (scripts/benchmark_tables.py).

A table is a function from the rows of one benchmark to lines of Markdown.
"""
