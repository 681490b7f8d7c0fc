"""Calls of ``torch_npu``'s operators, one file for each op.

An operator is looked up when it is called: SGLang's batch-invariant mode replaces some of them.
"""
