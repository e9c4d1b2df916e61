// CUDA's half precision, by the compiler's.
#pragma once

using __half = _Float16;
