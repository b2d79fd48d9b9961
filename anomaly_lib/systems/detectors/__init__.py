"""PatchCore, PaDiM, Reverse Distillation, DRAEM and DRAEM-SevNet on any data set."""
