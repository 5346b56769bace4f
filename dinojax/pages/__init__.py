"""What a person sees of runs and of pictures: HTML pages, from files."""
