"""One operation per file, its pure-PyTorch reference beside it; native kernels in ``src``."""
