"""Seeded cases of good and damaged input for every reader and detector; `oracle.judge` says which came out right."""
