"""Crystal graph + text: ALIGNN with middle fusion, and what its diagnosis tools measure."""
