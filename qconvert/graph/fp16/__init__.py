"""Graphs in half precision, float16 or bfloat16."""
