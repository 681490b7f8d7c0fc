"""SGLang's models where no Triton kernel can run: linear attention and gates, by ops and plain PyTorch."""
