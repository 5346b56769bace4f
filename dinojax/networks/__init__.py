"""What the student and the teacher compute: backbone, heads, attention."""
