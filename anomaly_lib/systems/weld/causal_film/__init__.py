"""Causal-FiLM (V5): does the finished weld follow from how it was made?"""
