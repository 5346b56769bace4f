"""Pictures of what a backbone sees and has learnt, and of what it is trained on."""
