"""Fine-tuning: a backbone and a linear head learn the classes of labelled images."""
