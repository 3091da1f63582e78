"""The network bench: many servers, wide links, a real trace, one table."""
