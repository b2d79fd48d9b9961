"""Weld inspection: Causal-FiLM (V5), the Video-AE, the SupCon model (V4) and the baseline ladder."""
