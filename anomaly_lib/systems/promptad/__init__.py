"""PromptAD: learned prompts and a patch memory from k normal images; gate experiments and the sweep."""
