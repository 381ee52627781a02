"""Speed and quality, each a script that anyone can rerun: `python -m benchmarks.NAME`."""
