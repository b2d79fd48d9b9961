"""V4: four modalities by supervised contrast, judged by the nearest training runs."""
