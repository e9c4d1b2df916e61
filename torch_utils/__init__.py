"""Plumbing that knows torch and nothing of faces.

What torch reads from the environment is set here, so the other packages import this before torch.
"""

import os

# Where a kernel gives huge pages only on request (Linux: `madvise`), torch asks for them if this is set
# before its first tensor. A new tensor of 100 MB is then filled in a quarter of the time: it takes 50 pages
# instead of 30,000.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

# How often a thread of torch's (GNU OpenMP) looks for more work before it sleeps. Left alone it looks for
# milliseconds after every operation, on a core that another program, or the thread that all wait for, could
# use: beside one busy program an edit took two to five times as long. This is some 100 microseconds, more
# than Python takes from one operation to the next.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
