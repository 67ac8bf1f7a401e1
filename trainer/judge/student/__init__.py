"""The small judge: a BERT with one classifier, trained by contrastive reasoning self-distillation."""
