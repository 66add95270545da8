"""Pretrain GPT-124M as a reproducible pipeline. Import names from the file that defines them."""
