"""The sections of docs/benchmarks.md: one file for each benchmark, of which `section` makes Markdown of its report."""
