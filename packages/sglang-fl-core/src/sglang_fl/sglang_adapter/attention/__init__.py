"""The attention backend ``sglang_fl``: SGLang's attention over two ops of ours."""
