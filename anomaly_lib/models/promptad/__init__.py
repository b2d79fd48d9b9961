"""PromptAD's prompt learner, losses, memory and scores."""
