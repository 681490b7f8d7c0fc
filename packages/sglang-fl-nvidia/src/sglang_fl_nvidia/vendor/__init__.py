"""SGLang's own CUDA kernels (``sgl_kernel``, FlashInfer) under the contracts of sglang-fl."""
