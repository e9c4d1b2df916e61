"""The top-level package `datasets` shares its name with Hugging Face's, for which other libraries probe.

Every test starts a fresh interpreter in the clone, where `import datasets` finds this project's package.
"""

from __future__ import annotations

import os
import subprocess
import sys


def python(root, code: str) -> str:
    """What ``code`` prints in a new interpreter that runs in the clone."""
    env = {**os.environ, "PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error::ImportWarning", "-c", code]
    result = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout.strip()


def test_the_name_is_ours_in_the_clone(root) -> None:
    assert python(root, "import datasets; print(datasets.__file__)") == str(root / "datasets" / "__init__.py")


def test_importing_it_imports_nothing_else(root) -> None:
    """A library that tries `import datasets` pays nothing for it and gets no torch."""
    code = "import sys, datasets; print({'datasets', 'torch', 'numpy', 'PIL', 'click'} & set(sys.modules))"
    assert python(root, code) == "{'datasets'}"


PROBE = """
import importlib.util
import datasets

import transformers
from transformers.utils import is_datasets_available
is_datasets_available()  # may say yes: it looks for the name only; what follows must work all the same
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
sizes = dict(vocab_size=50, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
CLIPTextModel(CLIPTextConfig(**sizes))

from diffusers import AutoencoderKL, ControlNetModel, DDPMScheduler, UNet2DConditionModel
from diffusers import StableDiffusionControlNetPipeline
assert DDPMScheduler(num_train_timesteps=10).alphas_cumprod.shape == (10,)

import accelerate
from accelerate.utils import is_datasets_available
is_datasets_available()

if importlib.util.find_spec("open_clip"):
    import open_clip
    assert open_clip.list_models()

from datasets.masked_images import MaskedImages
print(MaskedImages.__module__)
"""


def test_libraries_import_beside_it(root) -> None:
    assert python(root, PROBE) == "datasets.masked_images"
