"""The block server: `chainserve-server`."""
