"""``pip install .`` brings everything that the scripts of this clone need, at versions that go together.

No module is installed: the scripts run from the clone. Top-level packages called ``datasets`` or ``training``
in site-packages would overwrite those of other projects, first of all Hugging Face's ``datasets``.
"""

import re
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "dnnlib" / "__init__.py").read_text()).group(1)

REQUIRES = [
    # each torchvision names its one torch, so these two ranges admit the pairs 2.9/0.24 to 2.14/0.29 only
    "torch>=2.9,<2.15",
    "torchvision>=0.24,<0.30",
    "numpy>=1.26,<3",
    "scipy>=1.11,<2",
    "pillow>=10.3",
    "click>=8.1,<9",
    "pyyaml>=6",
    "safetensors>=0.4.5,<1",
    "diffusers>=0.40,<0.50",
    "transformers>=5,<6",
    "huggingface_hub>=1,<3",  # diffusers and transformers need it too
    "filelock>=3.13",
    "accelerate>=1.2,<2",  # diffusers loads models without a second copy in memory through it
    "open_clip_torch>=3,<4",
    "torchmetrics>=1.4,<2",
    "tqdm>=4.66",
    "tensorboard>=2.16",
    "imageio>=2.34",
    "imageio-ffmpeg>=0.5",
    "scikit-image>=0.24,<1",
    "trimesh>=4.4",
    "psutil>=5.9",
    "ninja>=1.11",  # builds torch_utils/ops/src; without a compiler the reference operations run
]

DOCS = ["matplotlib>=3.8,<4"]  # python -m training.plot
PORTRAITS = ["anny>=0.6,<0.7", "mitsuba>=3.9,<4"]
APP = ["gradio>=6,<7"]  # app.py
INCEPTION = ["torch-fidelity>=0.3,<1"]  # evaluate.py --features inception

TEST = [
    "pytest>=8",
    "pytest-timeout>=2.3",
    "hypothesis>=6.100",
    "ruff>=0.17,<0.18",  # another minor version formats differently
    *DOCS,
    *PORTRAITS,
]

setup(
    name="mate3d",
    version=VERSION,
    description="Mask-guided, text-based, 3D-aware portrait editing",
    long_description=(ROOT / "README.md").read_text() if (ROOT / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=[],
    py_modules=[],
    install_requires=REQUIRES,
    extras_require={"test": TEST, "portraits": PORTRAITS, "docs": DOCS, "app": APP, "inception": INCEPTION},
)
