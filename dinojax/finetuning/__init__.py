"""Fine-tuning: a backbone and a linear head learn a task from labelled images."""
