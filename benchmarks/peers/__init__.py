"""The window job by other engines, beside Headrace: `make bench-peers`."""
