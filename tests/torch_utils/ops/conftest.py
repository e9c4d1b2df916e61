"""The emulated kernels, compiled once for all tests."""

from __future__ import annotations

import pytest

from tests.torch_utils.ops.emulator import KINDS, compiled


@pytest.fixture(scope="session")
def mlp(tmp_path_factory):
    wrappers = "".join(
        f'extern "C" const char* mlp_{number}(int order, const MlpArguments<{number}>* a, '
        f"const MlpPartial<{number}>* p) {{ return mlp_cuda(order, *a, *p, nullptr); }}\n"
        for number in ("float", "double")
    )
    return compiled("fused_mlp", tmp_path_factory.mktemp("mlp"), wrappers)


@pytest.fixture(scope="session")
def sample(tmp_path_factory):
    wrappers = "".join(
        f"""extern "C" {{
const char* corners_{n}(const CornerArguments<{n}>* a) {{ return corners_cuda(*a, nullptr); }}
const char* gather_{n}(const Rows<{n}>* r, const {n}* a, {n}* b) {{ return gather_cuda(*r, a, b, nullptr); }}
const char* scatter_{n}(const Rows<{n}>* r, const {n}* a, {n}* b) {{
  return scatter_cuda(*r, a, b, nullptr);
}}
const char* dot_{n}(const Rows<{n}>* r, const {n}* a, const {n}* b, {n}* c) {{
  return dot_cuda(*r, a, b, c, nullptr);
}}
}}
"""
        for n in ("float", "double")
    )
    return compiled("triplane_sample", tmp_path_factory.mktemp("sample"), wrappers)


@pytest.fixture(scope="session")
def march(tmp_path_factory):
    """As it is, but for the most blocks that it starts, which a test may choose."""
    wrappers = "".join(
        f"""extern "C" {{
const char* march_{n}(const Rays<{n}>* rays, const Marched<{n}>* out) {{
  return march_rays_cuda(*rays, *out, nullptr);
}}
const char* gradient_{n}(const Rays<{n}>* rays, const RayGradients<{n}>* out) {{
  return march_rays_gradient_cuda(*rays, *out, nullptr);
}}
}}
"""
        for n in ("float", "double")
    )
    replacements = {
        "extern __shared__ double memory[];": "static double memory[48 * 1024 / sizeof(double)];",
        "rays.rays < 65536 ? rays.rays : 65536": "rays.rays < most_blocks ? rays.rays : most_blocks",
    }
    return compiled("march_rays", tmp_path_factory.mktemp("march"), wrappers, replacements)


@pytest.fixture(scope="session")
def act(tmp_path_factory):
    wrappers = "".join(
        f"""extern "C" const char* act_{name}(int act, int wanted, const BiasActArguments<{kinds}>* a) {{
  return bias_act_cuda(Activation(act), Wanted(wanted), *a{brain}, nullptr);
}}
"""
        for name, kinds, brain in KINDS
    )
    wrappers += """extern "C" int64_t divided(int64_t number, int64_t by, int64_t largest) {
  return Division(by, largest)(number);
}
"""
    return compiled("bias_act", tmp_path_factory.mktemp("act"), wrappers)


@pytest.fixture(scope="session")
def filters(tmp_path_factory):
    wrappers = "".join(
        f"""extern "C" const char* filter_{name}(const UpfirdnArguments<{kinds}>* a) {{
  return upfirdn2d_cuda(*a{brain}, nullptr);
}}
"""
        for name, kinds, brain in KINDS
    )
    return compiled("upfirdn2d", tmp_path_factory.mktemp("filters"), wrappers)
