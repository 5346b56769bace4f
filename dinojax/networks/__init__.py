"""Networks of student and teacher: vision transformer, projection heads, attention."""
