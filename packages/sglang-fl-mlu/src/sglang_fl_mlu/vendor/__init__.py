"""Calls of ``torch_mlu_ops``, one file for each op."""
