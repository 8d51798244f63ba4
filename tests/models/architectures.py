"""Small random models of every architecture that has a fused form, by what departs from the test suite's own sizes."""

ARCHITECTURES = {
    "llama": {},
    "mistral": {"sliding_window": 6},
    "qwen2": {},
    "qwen3": {},
    "gemma2": {"sliding_window": 6, "query_pre_attn_scalar": 8},
    "gemma3_text": {"sliding_window": 6, "query_pre_attn_scalar": 8},
    "phi3": {},
    "one key head": {"kind": "gemma3_text", "num_key_value_heads": 1, "query_pre_attn_scalar": 8},
}
