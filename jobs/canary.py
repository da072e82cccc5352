"""`python -m jobs.canary`, as it was called before version 0.2: the same as `python -m jobs.serving.canary`."""

from __future__ import annotations

from jobs.serving.canary.__main__ import main

if __name__ == "__main__":
    main()
